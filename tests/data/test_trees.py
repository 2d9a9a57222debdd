"""The store of trees: what was appended is there after a kill; damage is found."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import zlib

import pytest
from conversation_cases import step, task

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Transition
from agentrm_jax.data.trees import (
    FILE,
    BackupRecord,
    FailureRecord,
    IterationRecord,
    NodeRecord,
    TreeRecord,
    TreeStore,
)
from agentrm_jax.runtime.json_lines import JsonLines


def iteration(number: int, tree: int = 0) -> IterationRecord:
    first = 1 + 2 * number
    return IterationRecord(
        task_id=f"toy/{tree}",
        iteration=number,
        nodes=tuple(
            NodeRecord(
                node=first + i,
                parent=0,
                step=dataclasses.replace(
                    step(f"Action: {number} é", "o", token_ids=(7, 8), log_probs=(-0.1, -0.25)),
                    transition=Transition(
                        observation="o", reward=number / 3, done=True, success=False
                    ),
                ),
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


def test_several_rollouts_of_an_iteration_come_back_and_are_checked(tmp_path):
    """Without them the key is absent, as in files of earlier versions."""
    store = TreeStore(tmp_path)
    store.begin(task(0), "Goal 0.")
    store.append(iteration(0))
    other = BackupRecord(path=(0, 4), outcome=1 / 3)
    several = dataclasses.replace(iteration(1), further=(other, other))
    store.append(several)
    lines = [json.loads(line)["record"] for line in (tmp_path / FILE).read_text().splitlines()]
    assert ["further" in line for line in lines] == [False, False, True]
    tree = TreeStore.read(tmp_path)["toy/0"]
    assert tree.iterations == (iteration(0), several)
    visits, sums = tree.backed_up()
    assert visits.tolist() == [4, 1, 0, 1, 2]
    assert sums == pytest.approx([1, 0, 0, 1 / 3, 2 / 3])
    store.append(dataclasses.replace(iteration(2), further=(BackupRecord(path=(0,), outcome=0.0),)))
    with pytest.raises(UserError, match=r"line 4: .*path: the episode is not over at its last"):
        TreeStore.read(tmp_path)


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
    with pytest.raises(UserError, match=r"line 2: not a tree record \(task toy/5 was never begun"):
        TreeStore.read(tmp_path)


def rewritten(directory, change) -> None:
    """Writes the records again, with sound checksums, after a change."""
    path = directory / FILE
    records = [json.loads(line)["record"] for line in path.read_text().splitlines()]
    path.unlink()
    with JsonLines(path) as lines:
        for record in change(records) or records:
            lines.append(record)


# Records: 0 and 1 begin; 2, 4, 6 are iterations of toy/0 and 3, 5 of toy/1; 7 and 8 finish.
WRONG = {
    "an iteration twice": (lambda r: [*r[:5], r[4], *r[5:]], 6, "iteration: must be 2"),
    "an iteration lost": (lambda r: [*r[:4], *r[5:]], 6, "iteration: must be 1 \\(got 2"),
    "iterations swapped": (lambda r: [r[0], r[1], r[4], r[3], r[2]], 3, "iteration: must be 0"),
    "a task twice": (lambda r: [r[0], *r], 2, "was begun before"),
    "no beginning": (lambda r: r[1:], 2, "was never begun"),
    "after the end": (lambda r: [*r, r[6]], 10, "was finished before"),
    "ended twice": (lambda r: [*r, r[7]], 10, "was finished before"),
    "a node's number": (lambda r: r[2]["nodes"][1].update(node=5), 3, "node: must be 2"),
    "a parent that comes later": (lambda r: r[2]["nodes"][0].update(parent=2), 3, "before it"),
    "a negative parent": (lambda r: r[2]["nodes"][0].update(parent=-1), 3, "before it"),
    "a parent that is over": (lambda r: r[2]["nodes"][1].update(parent=1), 3, "episode is over"),
    "multiplicity": (lambda r: r[2]["nodes"][1].update(multiplicity=0), 3, "must be at least 1"),
    "an empty path": (lambda r: r[2].update(path=[]), 3, "path: must begin with the root"),
    "a path from elsewhere": (lambda r: r[2].update(path=[1]), 3, "path: must begin with the root"),
    "a path out of order": (lambda r: r[2].update(path=[0, 1, 2]), 3, "node 2 is no child of 1"),
    "a path out of the tree": (lambda r: r[2].update(path=[0, 77]), 3, "node 77 is no child of 0"),
    "a negative path": (lambda r: r[2].update(path=[0, -1]), 3, "node -1 is no child of 0"),
    "a path cut short": (lambda r: r[2].update(path=[0]), 3, "is not over at its last node"),
    "another outcome": (lambda r: r[4].update(outcome=0.9), 5, "return of its path, 0.333333"),
    "an outcome beyond 1": (lambda r: r[4].update(outcome=7), 5, "outcome: must be within 0 and 1"),
    "closed": (lambda r: r[2].update(closed=[99]), 3, "closed: there is no such node"),
    "a type": (lambda r: r[2].update(path="0"), 3, "path: must be a list"),
    "a deep type": (
        lambda r: r[2]["nodes"][0]["step"].update(token_ids=[1, "2"]),
        3, "nodes\\[0\\].step.token_ids: must be a whole number \\(got 2",
    ),
    "a truth": (
        lambda r: r[2]["nodes"][0]["step"]["transition"].update(done=1), 3, "done: must be true or",
    ),
    "a missing key": (lambda r: r[2].pop("outcome") and None, 3, "outcome: is missing"),
    "an unknown key": (lambda r: r[0].update(more=1), 1, "more: unknown key"),
    "an unknown kind": (lambda r: r[0].update(kind=[]), 1, "kind: must be begin"),
    "no object": (lambda r: [[]], 1, "kind: must be begin"),
    "a task of another type": (lambda r: r[0].update(task="toy/0"), 1, "task: must be an object"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_records_that_do_not_follow_from_each_other_name_their_line(tmp_path, what):
    grow(tmp_path)
    change, line, message = WRONG[what]
    rewritten(tmp_path, change)
    with pytest.raises(UserError, match=rf"trees\.jsonl, line {line}: .*{message}"):
        TreeStore.read(tmp_path)


def test_a_number_that_is_not_finite_names_its_line(tmp_path):
    grow(tmp_path)
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    record = lines[2][29:-2].replace(b'"outcome":0.0', b'"outcome":NaN')
    lines[2] = b'{"crc32":"%08x","record":%b}\n' % (zlib.crc32(record), record)
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"trees\.jsonl, line 3: .*NaN is not a finite number"):
        TreeStore.read(tmp_path)


def test_after_exploration_a_missing_end_is_damage(tmp_path):
    grow(tmp_path)
    path = tmp_path / FILE
    content = path.read_bytes()
    assert len(TreeStore.read(tmp_path, finished=True)) == 2
    path.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"line 9: corrupt record"):
        TreeStore.read(tmp_path, finished=True)
    path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(UserError, match="the tree of task toy/1 has no end"):
        TreeStore.read(tmp_path, finished=True)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        TreeStore.read(tmp_path, finished=True)


def test_failures_come_back_and_take_no_room_where_there_are_none(tmp_path):
    failure = FailureRecord(node=0, action="x", multiplicity=2, purpose="expand", reason="broke")
    record = dataclasses.replace(iteration(0), failures=(failure,), closed=(2,), expanded=(0,))
    store = TreeStore(tmp_path)
    store.begin(task(0), "Goal.")
    store.append(record)
    store.append(iteration(1))
    store.finish("toy/0", None, [failure])
    store.close()
    [tree] = TreeStore.read(tmp_path).values()
    assert tree.iterations == (record, iteration(1))
    assert tree.failures == [failure, failure]
    assert "failures" not in (tmp_path / FILE).read_text().splitlines()[2]
