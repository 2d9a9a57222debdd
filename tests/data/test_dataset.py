"""Datasets of trajectories and of labelled states."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from conversation_cases import step, trajectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory, to_json
from agentrm_jax.data.dataset import write_dataset
from agentrm_jax.data.states import LabelledTree, open_labels, write_labels
from agentrm_jax.data.trajectories import open_trajectories, write_trajectories
from agentrm_jax.runtime.manifests import read_manifest


def labelled(num_steps: int, number: int = 0) -> LabelledTree:
    """The steps as two branches: every third step follows the root."""
    states = range(num_steps + 1)
    return LabelledTree(
        task=trajectory(num_steps, number).task,
        first_observation="Go.",
        parents=(-1, *((i - 1 if i % 3 else 0) for i in states[1:])),
        steps=trajectory(num_steps, number).steps,
        values=tuple((i + 1) / 7 for i in states),
        visit_counts=tuple(40 - i for i in states),
        weights=tuple(float(i % 2) for i in states),
    )


def test_trajectories_come_back_in_order(tmp_path):
    written = [trajectory(i % 5, i) for i in range(300)]
    assert write_trajectories(tmp_path / "experts", written) == 300
    stored = open_trajectories(tmp_path / "experts")
    assert list(stored) == written
    assert stored[-1] == written[-1]
    assert stored[7:11] == written[7:11]
    with pytest.raises(IndexError):
        stored[300]


@settings(
    deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.floats(-50, 0), min_size=1, max_size=4),
)
def test_text_and_numbers_come_back_exactly(tmp_path, text, log_probs):
    one = step(text, text[::-1], token_ids=tuple(range(len(log_probs))), log_probs=tuple(log_probs))
    whole = Trajectory(task=trajectory(0).task, first_observation=text, steps=(one,))
    write_trajectories(tmp_path / "experts", [whole])
    assert open_trajectories(tmp_path / "experts")[0] == whole


def test_labelled_trees_come_back(tmp_path):
    written = [labelled(i, i) for i in range(6)]
    write_labels(tmp_path / "states", iter(written))
    assert list(open_labels(tmp_path / "states")) == written
    assert written[5].num_labels == 3


def test_a_dataset_is_replaced_whole_or_not_at_all(tmp_path):
    directory = tmp_path / "experts"
    write_trajectories(directory, [trajectory(1)])

    def failing():
        yield trajectory(2)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_trajectories(directory, failing())
    assert list(open_trajectories(directory)) == [trajectory(1)]
    with pytest.raises(UserError, match="nothing to write"):
        write_trajectories(directory, [])
    write_trajectories(directory, [trajectory(3)])
    assert list(open_trajectories(directory)) == [trajectory(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["experts"]
    assert sorted(path.name for path in directory.iterdir()) == ["examples", "manifest.json"]


def test_a_folder_with_other_files_is_refused_and_they_stay(tmp_path):
    directory = tmp_path / "experts"
    write_trajectories(directory, [trajectory(1)])
    for path in (directory / "notes.txt", tmp_path / "experts.partial" / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    with pytest.raises(UserError, match=r"experts: holds files .*\(notes\.txt\)"):
        write_trajectories(directory, [trajectory(3)])
    (directory / "notes.txt").rename(tmp_path / "notes.txt")
    write_trajectories(directory, [trajectory(3)])
    assert list(open_trajectories(directory)) == [trajectory(3)]
    assert (tmp_path / "experts.partial" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    broken = dataclasses.replace(labelled(2), values=(float("nan"), 0.0, 0.0))
    with pytest.raises(UserError, match=r"states: record .*: Out of range float values"):
        write_labels(tmp_path / "states", [broken])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"values": (0.5, 0.5)}, r"values: must have 4 items \(got 2\)"),
        ({"values": (0.5, 0.5, 0.5, 1.5)}, "values: must be within 0 and 1"),
        ({"weights": (1.0, -1.0, 0.0, 0.0)}, "must be at least 0"),
        ({"parents": (0, 0, 1, 2)}, r"parents: must begin with -1 \(got 0\)"),
        ({"parents": (-1, 0, 2, 2)}, r"that of node 2 must come before it \(got 2\)"),
        ({"parents": ()}, r"parents: must have 4 items \(got 0\)"),
    ],
)
def test_labels_that_contradict_themselves_are_corrupt(tmp_path, changes, reason):
    write_labels(tmp_path / "states", [dataclasses.replace(labelled(3), **changes)])
    with pytest.raises(UserError, match=f"states: record 0 is corrupt .*{reason}"):
        open_labels(tmp_path / "states")


def test_labels_of_an_older_version_are_read_as_trees(tmp_path):
    """They are root-to-leaf paths, with the numbers that the search gave to the nodes."""
    whole = trajectory(3)
    steps = whole.steps
    paths = [  # 0 - 2 - 3, and 2 - 7 - 8; the label of 2 is on the first path
        ((0, 2, 3), steps[:2], (0.5, 0.25, 0.0), (3, 2, 1), (0.5, 1.0, 0.0)),
        (
            (0, 2, 7, 8),
            (steps[0], *steps[1:]),
            (0.5, 0.25, 0.75, 1.0),
            (3, 2, 1, 1),
            (0, 0, 0.5, 1),
        ),
    ]
    write_dataset(
        tmp_path / "states",
        "labelled states",
        (
            (
                f"toy/0/{nodes[-1]}",
                {"num_steps": len(taken), "num_labels": sum(w > 0 for w in weights)},
                {
                    "trajectory": to_json(dataclasses.replace(whole, steps=tuple(taken))),
                    "node_ids": nodes,
                    "values": values,
                    "visit_counts": visits,
                    "weights": weights,
                },
            )
            for nodes, taken, values, visits, weights in paths
        ),
    )
    [tree] = open_labels(tmp_path / "states")
    assert tree == LabelledTree(
        task=whole.task,
        first_observation=whole.first_observation,
        parents=(-1, 0, 1, 1, 3),
        steps=(steps[0], steps[1], steps[1], steps[2]),
        values=(0.5, 0.25, 0.0, 0.75, 1.0),
        visit_counts=(3, 2, 1, 1, 1),
        weights=(0.5, 1.0, 0.0, 0.5, 1.0),
    )
    assert [branch.nodes for branch in tree.branches()] == [(0, 1, 2), (0, 1, 3, 4)]
    assert [branch.weights for branch in tree.branches()] == [(0.5, 1, 0), (0, 0, 0.5, 1)]


@pytest.mark.parametrize(
    ("opened", "command"), [(open_trajectories, "experts"), (open_labels, "label")]
)
def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path, opened, command):
    with pytest.raises(UserError, match=f"nowhere: not found; `agentrm {command}`"):
        opened(tmp_path / "nowhere")


def _record_file(directory):
    (path,) = directory.rglob("*.array_record*")
    return path


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.7, 0.999])
def test_a_truncated_dataset_is_an_error_when_it_is_opened(tmp_path, part):
    write_trajectories(tmp_path / "experts", [trajectory(3, i) for i in range(50)])
    path = _record_file(tmp_path / "experts")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match=r"array_record.*: its checksum differs from manifest"):
        open_trajectories(tmp_path / "experts")
    (tmp_path / "experts" / "manifest.json").unlink()  # a data set of an older version has none
    with pytest.raises(UserError, match=r"experts: (damaged|record 49 is corrupt)") as error:
        open_trajectories(tmp_path / "experts")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_flipped_bit_is_never_read_as_data(tmp_path, manifest):
    written = [trajectory(3, i) for i in range(50)]
    directory = tmp_path / "experts"
    write_trajectories(directory, written)
    files = [directory / name for name in read_manifest(directory / "manifest.json")]
    if not manifest:  # as in data sets of older versions: array_record has checksums of its own
        (directory / "manifest.json").unlink()
        files = [_record_file(directory)]
    random, found = np.random.default_rng(0), 0
    for _ in range(60):
        path = files[random.integers(len(files))]
        content = path.read_bytes()
        changed = bytearray(content)
        places = np.flatnonzero(np.frombuffer(content, np.uint8))  # files are mostly filling
        changed[random.choice(places)] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            assert list(open_trajectories(directory)) == written
        except UserError:
            found += 1
        path.write_bytes(content)
    assert found == 60 if manifest else found > 20


def test_another_format_is_an_error(tmp_path):
    write_labels(tmp_path / "states", [labelled(2)])
    with pytest.raises(UserError, match="states: record 0 is corrupt"):
        open_trajectories(tmp_path / "states")


def test_tensorflow_and_jax_are_not_loaded(tmp_path):
    write_trajectories(tmp_path / "experts", [trajectory(1)])
    code = (
        "import sys, pathlib\n"
        "from agentrm_jax.data.trajectories import open_trajectories\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "assert len(open_trajectories(pathlib.Path(sys.argv[1]))[0].steps) == 1\n"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "experts")], check=True)
