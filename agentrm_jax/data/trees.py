"""The store of search trees: append-only, one record for each finished iteration."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Task, Trajectory, to_json
from agentrm_jax.core.text import printable
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.runtime.run_paths import TREES

FILE = TREES


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NodeRecord:
    """A node of a search tree.

    Attributes:
      node: Its number in the tree; the root is 0, and children have larger numbers than parents.
      parent: The number of its parent.
      step: The step from the parent's state to its own.
      multiplicity: How many of the sampled turns had this action when the node was attached.
    """

    node: int
    parent: int
    step: Step
    multiplicity: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FailureRecord:
    """A candidate whose environment failed.

    Attributes:
      node: The node whose child it would have been; for `replay` the node that was not reached.
      action: The candidate's action.
      multiplicity: How many of the sampled turns had this action.
      purpose: `expand`, `expand again` (turns were sampled once more because all had failed),
        `rollout` or `replay`.
      reason: The failure in one line.
    """

    node: int
    action: str
    multiplicity: int
    purpose: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BackupRecord:
    """A return and the path through which it was backed up.

    Attributes:
      path: The nodes, from the root to a terminal node, both included.
      outcome: The return of the path, in [0, 1].
    """

    path: tuple[int, ...]
    outcome: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IterationRecord:
    """One iteration of a search.

    Attributes:
      task_id: The task of the tree.
      iteration: Number of the iteration in the tree, from 0.
      nodes: The nodes that it attached.
      path: The nodes that its first rollout backed up, from the root to a terminal node, both
        included.
      outcome: The return of the path, in [0, 1].
      further: The paths and returns of its other rollouts (`explore.search.num_rollouts`).
      failures: Candidates that failed since the iteration before.
      closed: Nodes that selection does not enter any more, because no candidate below them is left.
      expanded: If there are failures, the nodes that were expanded; else they follow from `path`.
    """

    task_id: str
    iteration: int
    nodes: tuple[NodeRecord, ...]
    path: tuple[int, ...]
    outcome: float
    further: tuple[BackupRecord, ...] = ()
    failures: tuple[FailureRecord, ...] = ()
    closed: tuple[int, ...] = ()
    expanded: tuple[int, ...] = ()

    @property
    def backups(self) -> tuple[BackupRecord, ...]:
        """The paths and returns of all its rollouts, in the order in which they are backed up."""
        return (BackupRecord(path=self.path, outcome=self.outcome), *self.further)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TreeRecord:
    """A search tree as its iterations left it.

    Attributes:
      task: The task that was searched.
      first_observation: The environment's first observation.
      iterations: The finished iterations, in order.
      finished: Whether the search of the tree has ended.
      error: Why the search ended early, if it did.
      last_failures: Candidates that failed after the last iteration.
    """

    task: Task
    first_observation: str
    iterations: tuple[IterationRecord, ...] = ()
    finished: bool = False
    error: str | None = None
    last_failures: tuple[FailureRecord, ...] = ()

    @property
    def failures(self) -> list[FailureRecord]:
        """All candidates that failed, in order."""
        failures = [failure for iteration in self.iterations for failure in iteration.failures]
        return [*failures, *self.last_failures]

    @property
    def backups(self) -> list[BackupRecord]:
        """The paths and returns of all rollouts, in order."""
        return [backup for iteration in self.iterations for backup in iteration.backups]

    @property
    def num_nodes(self) -> int:
        """The number of nodes, the root included."""
        return 1 + sum(len(iteration.nodes) for iteration in self.iterations)

    @property
    def nodes(self) -> dict[int, NodeRecord]:
        """All nodes but the root, by number."""
        return {node.node: node for iteration in self.iterations for node in iteration.nodes}

    def states(self) -> list[Trajectory]:
        """Returns the state of each node, the steps from the root to it, by node number."""
        states = [Trajectory(task=self.task, first_observation=self.first_observation)]
        for _, node in sorted(self.nodes.items()):  # parents come before their children
            states.append(states[node.parent].extended(node.step))
        return states

    def backed_up(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns visit counts [M] int64 and sums of returns [M] float64, by node number."""
        return back_up(self.iterations, self.num_nodes)


def back_up(
    iterations: Sequence[IterationRecord], num_nodes: int, dtype: type[np.floating] = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each node was visited, and the sum of the returns backed up through it.

    Args:
      iterations: A tree's iterations, in order.
      num_nodes: M, the length of the arrays; may be more than the tree has.
      dtype: The type in which returns are added up, in the order of the rollouts. With float32 the
        sums equal those of the search's device arrays to the bit.

    Returns:
      Visit counts [M] int64 and sums of returns [M] of `dtype`.
    """
    visits, sums = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, dtype)
    for iteration in iterations:
        for backup in iteration.backups:
            path = list(backup.path)
            visits[path] += 1
            sums[path] += dtype(backup.outcome)
    return visits, sums


class TreeStore:
    """A file of trees to which iterations are appended.

    An appended record survives a killed process; a finished tree survives a power failure too.

    Args:
      directory: The folder of the file.
      name: The file's name.
      make_folder: Whether the folder is made if it is absent.
    """

    def __init__(
        self, directory: pathlib.Path, name: str = FILE, *, make_folder: bool = True
    ) -> None:
        self._lines = JsonLines(directory / name, make_folder=make_folder)

    def begin(self, task: Task, first_observation: str) -> None:
        self._lines.append(
            {"kind": "begin", "task": to_json(task), "first_observation": first_observation}
        )

    def append(self, iteration: IterationRecord) -> None:
        record = {"kind": "iteration", **dataclasses.asdict(iteration)}
        self._lines.append({key: record[key] for key in record if record[key] or key not in _RARE})

    def finish(
        self, task_id: str, error: str | None = None, failures: Sequence[FailureRecord] = ()
    ) -> None:
        record: dict[str, Any] = {"kind": "finish", "task_id": task_id, "error": error}
        if failures:
            record["failures"] = [dataclasses.asdict(failure) for failure in failures]
        self._lines.append(record)
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()

    @staticmethod
    def read(
        directory: pathlib.Path, name: str = FILE, *, finished: bool = False
    ) -> dict[str, TreeRecord]:
        """Returns all trees by task id, in the order in which they were begun.

        Args:
          directory: The folder of the file.
          name: The file's name.
          finished: Whether exploration has ended. If so, a torn last line, an absent file or a tree
            without an end is an error.

        Raises:
          UserError: A record is corrupt or does not follow from those before it; the message names
            file and line.
        """
        path = directory / name
        growing: dict[str, _Reading] = {}
        for number, record in enumerate(read_json_lines(path, finished), start=1):
            try:
                _read_record(growing, record)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: not a tree record ({error}); restore the file, or "
                    "delete it to make it again"
                ) from None
        trees = {task_id: reading.record() for task_id, reading in growing.items()}
        unfinished = next((task_id for task_id in trees if not trees[task_id].finished), None)
        if finished and unfinished is not None:
            raise UserError(
                f"{path}: the tree of task {printable(unfinished)} has no end, yet exploration had "
                "ended; restore the file, or delete its folder to make it again"
            )
        return trees


_RARE = ("further", "failures", "closed", "expanded")
"""Keys that are written only if they are not empty."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Begin:
    task: Task
    first_observation: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Finish:
    task_id: str
    error: str | None = None
    failures: tuple[FailureRecord, ...] = ()


@dataclasses.dataclass(slots=True)
class _Reading:
    """A tree whose records are being read.

    Attributes:
      begin: The record that begins it.
      iterations: The iterations read so far.
      parents: Each node's parent, by node number.
      returns: The return up to each node.
      done: Whether the episode is over at each node.
      finish: The record that ends it, if it was read.
    """

    begin: _Begin
    iterations: list[IterationRecord] = dataclasses.field(default_factory=list)
    parents: list[int] = dataclasses.field(default_factory=lambda: [-1])
    returns: list[float] = dataclasses.field(default_factory=lambda: [0.0])
    done: list[bool] = dataclasses.field(default_factory=lambda: [False])
    finish: _Finish | None = None

    def record(self) -> TreeRecord:
        return TreeRecord(
            task=self.begin.task,
            first_observation=self.begin.first_observation,
            iterations=tuple(self.iterations),
            finished=self.finish is not None,
            error=self.finish.error if self.finish else None,
            last_failures=self.finish.failures if self.finish else (),
        )

    def add(self, iteration: IterationRecord) -> None:
        """Adds an iteration.

        Raises:
          ValueError: The iteration does not follow from the records before it.
        """
        if iteration.iteration != len(self.iterations):
            raise ValueError(
                f"iteration: must be {len(self.iterations)} (got {iteration.iteration})"
            )
        for node in iteration.nodes:
            self._add_node(node)
        for backup in iteration.backups:
            self._check_path(backup)
        for key in ("closed", "expanded"):
            for node in getattr(iteration, key):
                if not 0 <= node < len(self.parents) or (key == "closed" and node == 0):
                    raise ValueError(f"{key}: there is no such node ({node})")
        for failure in iteration.failures:
            if not 0 <= failure.node < len(self.parents) or failure.multiplicity < 1:
                raise ValueError("failures: node or multiplicity is out of range")
        self.iterations.append(iteration)

    def _add_node(self, node: NodeRecord) -> None:
        if node.node != len(self.parents):
            raise ValueError(f"node: must be {len(self.parents)} (got {node.node})")
        if not 0 <= node.parent < node.node:
            raise ValueError(f"parent of node {node.node}: must come before it (got {node.parent})")
        if self.done[node.parent]:
            raise ValueError(f"parent of node {node.node}: the episode is over at {node.parent}")
        if node.multiplicity < 1:
            raise ValueError(
                f"multiplicity of node {node.node}: must be at least 1 (got {node.multiplicity})"
            )
        self.parents.append(node.parent)
        self.returns.append(self.returns[node.parent] + node.step.transition.reward)
        self.done.append(node.step.transition.done)

    def _check_path(self, backup: BackupRecord) -> None:
        path = backup.path
        if not path or path[0] != 0:
            raise ValueError(f"path: must begin with the root, 0 (got {list(path[:3])})")
        for above, node in itertools.pairwise(path):
            if not 0 < node < len(self.parents) or self.parents[node] != above:
                raise ValueError(f"path: node {node} is no child of {above}")
        if not self.done[path[-1]]:
            raise ValueError(f"path: the episode is not over at its last node, {path[-1]}")
        if not -1e-6 <= backup.outcome <= 1 + 1e-6:
            raise ValueError(f"outcome: must be within 0 and 1 (got {backup.outcome})")
        if abs(backup.outcome - self.returns[path[-1]]) > 1e-6:
            raise ValueError(
                f"outcome: must be the return of its path, {self.returns[path[-1]]:.6g} "
                f"(got {backup.outcome:.6g})"
            )


def _read_record(growing: dict[str, _Reading], record: Any) -> None:
    """Adds a record to its tree.

    Raises:
      ValueError: It is not a record of a tree, or does not follow from those before it.
    """
    fields = dict(record) if isinstance(record, dict) else {}
    kind = fields.pop("kind", None)
    if kind == "begin":
        begin = from_json(_Begin, fields)
        if begin.task.task_id in growing:
            raise ValueError(f"task {printable(begin.task.task_id)} was begun before")
        growing[begin.task.task_id] = _Reading(begin)
        return
    if kind not in ("iteration", "finish"):
        raise ValueError("kind: must be begin, iteration or finish")
    content = from_json(IterationRecord if kind == "iteration" else _Finish, fields)
    reading = growing.get(content.task_id)
    if reading is None:
        raise ValueError(f"task {printable(content.task_id)} was never begun")
    if reading.finish is not None:
        raise ValueError(f"task {printable(content.task_id)} was finished before")
    if isinstance(content, IterationRecord):
        reading.add(content)
    else:
        reading.finish = content
