"""Reads trajectories: from the folders and files of a run, and from conversations of others."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import first_line
from agentrm_jax.data.atif import is_atif, read_atif
from agentrm_jax.data.conversations import item_names, read_conversations
from agentrm_jax.data.dataset import open_dataset
from agentrm_jax.data.json_items import read_items
from agentrm_jax.data.states import open_labels
from agentrm_jax.data.trajectories import open_trajectories, stored_trajectory
from agentrm_jax.data.trees import FILE, TreeStore
from agentrm_jax.envs.registry import environment_names, load_family
from agentrm_jax.runtime.json_lines import read_json_lines
from agentrm_jax.runtime.run_directory import RESOLVED
from agentrm_jax.runtime.run_paths import DATASET, ROLLOUTS
from agentrm_jax.runtime.stage_files import stage_ended

# Names of environments in the ids and file names of ETO and AgentGym.
_THEIR_NAMES = {
    "sciworld": "scienceworld",
    "lmrlgym_maze": "maze",
    "tool_weather": "toolquery",
    "tool_movie": "toolquery",
    "tool_academia": "toolquery",
    "tool_todo": "tooloperation",
    "tool_sheet": "tooloperation",
}

_KINDS = (
    "give a run's experts, trees, states, samples or eval folder, a folder that `agentrm import` "
    f"wrote, a {FILE} or {ROLLOUTS}, conversations (JSON, or JSON lines), or ATIF files, also of a "
    "Harbor job"
)
_ATIF_FILES = ("trajectory.json", "agent/trajectory.json", "*/agent/trajectory.json")
"""Where Harbor writes a trajectory: below the folder of an agent, a trial or a job."""


def read_trajectories(
    path: str | os.PathLike[str],
    environment: str | None = None,
    *,
    unregistered: Collection[str] = (),
    outcomes_required: bool = False,
) -> Sequence[Trajectory]:
    """Returns the trajectories of a folder or file, in its order.

    The trajectories of trees are the paths that were backed up, each once.

    Args:
      path: The folder or file.
      environment: The environment that was played, for conversations whose ids and file name do not
        name it, and for ATIF files.
      unregistered: Names of environments that need not be registered.
      outcomes_required: Whether conversations without `reward` are refused; else they are solved.

    Raises:
      UserError: There are no trajectories, or a file is damaged; the message has file and line.
    """
    path = pathlib.Path(path)
    foreign = _Foreign(environment, unregistered, outcomes_required)
    trajectories = _of_folder(path, foreign) if path.is_dir() else _of_file(path, foreign)
    if not trajectories:
        raise UserError(f"{path}: holds no trajectory")
    return trajectories


@dataclasses.dataclass(frozen=True, slots=True)
class _Foreign:
    """Reads files of others; see `read_trajectories`."""

    environment: str | None
    unregistered: Collection[str]
    outcomes_required: bool

    def read(self, path: pathlib.Path) -> Sequence[Trajectory]:
        """Returns the trajectories of a file of conversations or in ATIF."""
        if is_atif(read_items(path)[0]):
            trajectories = read_atif(path, self.environment)
            for name in {trajectory.task.environment for trajectory in trajectories}:
                self._check(name)
            return trajectories
        name = self.environment or environment_of(path)
        self._check(name)
        return read_conversations(path, name, outcomes_required=self.outcomes_required)

    def _check(self, name: str) -> None:
        if name not in self.unregistered:
            load_family(name)  # raises if there is no such environment


def _of_folder(folder: pathlib.Path, foreign: _Foreign) -> Sequence[Trajectory]:
    for dataset in (folder, folder / DATASET):
        if (dataset / "examples").is_dir():
            return _of_dataset(dataset)
    if (folder / FILE).exists():
        return list(_paths(folder))
    if atif := [path for pattern in _ATIF_FILES for path in sorted(folder.glob(pattern))]:
        return [trajectory for path in atif for trajectory in foreign.read(path)]
    rollouts = [*folder.glob(ROLLOUTS), *sorted(folder.glob(f"*/{ROLLOUTS}"))]
    if not rollouts or (folder / RESOLVED).exists():  # a whole run has several kinds
        raise UserError(f"{folder}: no trajectories here; {_KINDS}")
    return [trajectory for path in rollouts for trajectory in _rollouts(path)]


def _of_dataset(folder: pathlib.Path) -> Sequence[Trajectory]:
    """The trajectories of a data set of trajectories, or the labelled paths of labelled trees."""
    records = open_dataset(folder, "experts", lambda value: value)
    first = records[0] if len(records) else None
    if isinstance(first, Mapping) and {"parents", "trajectory"} & first.keys():
        trees = open_labels(folder)
        return [tree.state(branch.nodes[-1]) for tree in trees for branch in tree.branches()]
    return open_trajectories(folder)


def _of_file(path: pathlib.Path, foreign: _Foreign) -> Sequence[Trajectory]:
    try:
        with path.open("rb") as file:
            head = file.read(1024).lstrip()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; {_KINDS}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if not head:
        raise UserError(f"{path}: is empty; {_KINDS}")
    if not head.startswith(b'{"crc32"'):
        if head.removeprefix(b"\xef\xbb\xbf")[:1] not in (b"[", b"{"):
            raise UserError(f"{path}, line 1: neither a record of ours nor a list; {_KINDS}")
        return foreign.read(path)
    first = next(read_json_lines(path), {})
    if isinstance(first, dict) and "kind" in first:
        return list(_paths(path.parent, path.name))
    return list(_rollouts(path))


def _paths(folder: pathlib.Path, name: str = FILE) -> Iterator[Trajectory]:
    for tree in TreeStore.read(folder, name, finished=stage_ended(folder)).values():
        states = tree.states()
        for leaf in dict.fromkeys(backup.path[-1] for backup in tree.backups):
            yield states[leaf]


def _rollouts(path: pathlib.Path) -> Iterator[Trajectory]:
    # Samples are in the folder of their stage, the rollouts of a method one folder below it.
    finished = any(stage_ended(folder) for folder in (path.parent, path.parent.parent))
    for number, record in enumerate(read_json_lines(path, finished), start=1):
        if isinstance(record, dict) and "outcome" in record:
            raise UserError(
                f"{path}, line {number}: an episode, which does not hold its trajectory; give the "
                f"{ROLLOUTS} next to it"
            )
        try:
            yield stored_trajectory(record["trajectory"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: not a rollout ({first_line(error)})") from None


def environment_of(file: pathlib.Path) -> str:
    """Returns the environment of a file of conversations.

    It is the name with which the first id, or else the file's name, begins.

    Raises:
      UserError: Neither begins with an environment, or there is no such file.
    """
    known = {**{name: name for name in environment_names()}, **_THEIR_NAMES}
    for text in (*itertools.islice(item_names(file), 1), file.name):
        for theirs in sorted(known, key=len, reverse=True):
            if re.match(rf"{re.escape(theirs)}(?![a-z])", text.lower()):
                return known[theirs]
    if not file.exists():
        raise UserError(f"{file}: not found")
    raise UserError(
        f"{file}: neither its ids nor its name begin with an environment; give --environment NAME"
    )
