"""The store of trees: what was appended is there after a kill; damage is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conversation_cases import step, task

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.trees import FILE, IterationRecord, NodeRecord, TreeRecord, TreeStore


def iteration(number: int, tree: int = 0) -> IterationRecord:
    first = 1 + 2 * number
    return IterationRecord(
        task_id=f"toy/{tree}",
        iteration=number,
        nodes=tuple(
            NodeRecord(
                node=first + i,
                parent=0,
                step=step(f"Action: {number} é", "o", token_ids=(7, 8), log_probs=(-0.1, -0.25)),
                multiplicity=i + 1,
            )
            for i in range(2)
        ),
        path=(0, first),
        outcome=number / 3,
    )


def grow(directory) -> dict[str, TreeRecord]:
    """Two trees that grow by turns; the second one breaks."""
    store = TreeStore(directory)
    store.begin(task(0), "Goal 0.")
    store.begin(task(1), "Goal 1.")
    for i in range(3):
        store.append(iteration(i, 0))
        if i < 2:
            store.append(iteration(i, 1))
    store.finish("toy/0")
    store.finish("toy/1", "the game broke")
    store.close()
    return {
        "toy/0": TreeRecord(
            task=task(0), first_observation="Goal 0.", finished=True,
            iterations=tuple(iteration(i, 0) for i in range(3)),
        ),
        "toy/1": TreeRecord(
            task=task(1), first_observation="Goal 1.", finished=True, error="the game broke",
            iterations=tuple(iteration(i, 1) for i in range(2)),
        ),
    }  # fmt: skip


def test_trees_come_back(tmp_path):
    grown = grow(tmp_path)
    assert TreeStore.read(tmp_path) == grown
    assert grown["toy/0"].num_nodes == 7


def test_nothing_stored_is_no_tree(tmp_path):
    assert TreeStore.read(tmp_path) == {}


def test_cut_anywhere_it_holds_the_whole_records_and_goes_on(tmp_path):
    grow(tmp_path)
    path = tmp_path / FILE
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(0, len(content), 37):
        path.write_bytes(content[:cut])
        TreeStore(tmp_path).close()
        whole = max((end for end in ends if end <= cut), default=0)
        assert path.read_bytes() == content[:whole]
        TreeStore.read(tmp_path)
    path.write_bytes(content[: ends[4] + 9])  # into the second iteration of the second tree
    store = TreeStore(tmp_path)
    store.append(iteration(1, 1))
    store.close()
    again = TreeStore.read(tmp_path)
    assert again["toy/1"].iterations == (iteration(0, 1), iteration(1, 1))
    assert not again["toy/1"].finished


def test_what_was_appended_survives_kill_9(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from test_trees import TreeStore, iteration, task\n"
        "store = TreeStore(pathlib.Path(sys.argv[1]))\n"
        "store.begin(task(0), 'Goal.')\n"
        "store.append(iteration(0))\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE, cwd=os.path.dirname(__file__),
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert TreeStore.read(tmp_path)["toy/0"].iterations == (iteration(0),)


@pytest.mark.parametrize("line", [1, 4])
def test_damage_before_the_end_names_file_and_line(tmp_path, line):
    grow(tmp_path)
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b"toy", b"tox")
    path.write_bytes(b"".join(lines))
    for attempt in (TreeStore, TreeStore.read):
        with pytest.raises(UserError, match=rf"trees\.jsonl, line {line}: corrupt record"):
            attempt(tmp_path)


def test_a_record_that_belongs_to_no_tree_names_its_line(tmp_path):
    store = TreeStore(tmp_path)
    store.begin(task(0), "Goal.")
    store.append(iteration(0, tree=5))
    store.close()
    with pytest.raises(UserError, match=r"trees\.jsonl, line 2: not a tree record \('toy/5'\)"):
        TreeStore.read(tmp_path)
