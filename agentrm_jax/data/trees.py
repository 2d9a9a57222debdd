"""The store of search trees: append-only, one record for each finished iteration."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_lines import JsonLines, read_json_lines
from agentrm_jax.core.processes import own_part
from agentrm_jax.core.records import (
    Step,
    Task,
    Trajectory,
    step_from_json,
    task_from_json,
    to_json,
)

FILE = "trees.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NodeRecord:
    """A node: its number in the tree (the root is 0), its parent's, and the step between them.

    `multiplicity` says how many of the sampled turns had this action when it was attached.
    """

    node: int
    parent: int
    step: Step
    multiplicity: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IterationRecord:
    """One iteration: the nodes that it attached, the path that it backed up, and the return.

    `path` leads from the root to a terminal node, both included.
    """

    task_id: str
    iteration: int
    nodes: tuple[NodeRecord, ...]
    path: tuple[int, ...]
    outcome: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TreeRecord:
    """A stored tree. `error` says why the search of it ended early, if it did."""

    task: Task
    first_observation: str
    iterations: tuple[IterationRecord, ...] = ()
    finished: bool = False
    error: str | None = None

    @property
    def num_nodes(self) -> int:
        return 1 + sum(len(iteration.nodes) for iteration in self.iterations)

    @property
    def nodes(self) -> dict[int, NodeRecord]:
        """By number; the root is none of them."""
        return {node.node: node for iteration in self.iterations for node in iteration.nodes}

    def states(self) -> list[Trajectory]:
        """By node number: the steps from the root to it."""
        states = [Trajectory(task=self.task, first_observation=self.first_observation)]
        for _, node in sorted(self.nodes.items()):  # parents come before their children
            states.append(states[node.parent].extended(node.step))
        return states

    def backed_up(self) -> tuple[np.ndarray, np.ndarray]:
        """By node number: visit counts [M] int64 and sums of returns [M] float64."""
        visits, sums = np.zeros(self.num_nodes, np.int64), np.zeros(self.num_nodes)
        for iteration in self.iterations:
            path = list(iteration.path)
            visits[path] += 1
            sums[path] += iteration.outcome
        return visits, sums

    def finished_trajectories(self) -> list[Trajectory]:
        """The trajectories that came to their end, by the number of their last node."""
        nodes = {node.node: node for iteration in self.iterations for node in iteration.nodes}
        found = []
        for number in sorted(nodes):
            if nodes[number].step.transition.done:
                steps = []
                while number != 0:
                    steps.append(nodes[number].step)
                    number = nodes[number].parent
                found.append(
                    Trajectory(
                        task=self.task,
                        first_observation=self.first_observation,
                        steps=tuple(reversed(steps)),
                    )
                )
        return found


class TreeStore:
    """Trees open for appending.

    What was appended survives the process; a finished tree survives the machine too. Of several
    processes each has a part of the file (`core.processes.gather`).
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._lines = JsonLines(own_part(directory / FILE))

    def begin(self, task: Task, first_observation: str) -> None:
        self._lines.append(
            {"kind": "begin", "task": to_json(task), "first_observation": first_observation}
        )

    def append(self, iteration: IterationRecord) -> None:
        self._lines.append({"kind": "iteration", **dataclasses.asdict(iteration)})

    def finish(self, task_id: str, error: str | None = None) -> None:
        self._lines.append({"kind": "finish", "task_id": task_id, "error": error})
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()

    @staticmethod
    def read(directory: pathlib.Path, name: str = FILE) -> dict[str, TreeRecord]:
        """All trees by task id, in the order in which they were begun.

        Raises:
          UserError: A corrupt record; names file and line.
        """
        path = directory / name
        trees: dict[str, TreeRecord] = {}
        iterations: dict[str, list[IterationRecord]] = {}
        for number, record in enumerate(read_json_lines(path), start=1):
            try:
                if record["kind"] == "begin":
                    task = task_from_json(record["task"])
                    observation = record["first_observation"]
                    trees[task.task_id] = TreeRecord(task=task, first_observation=observation)
                    iterations[task.task_id] = []
                elif record["kind"] == "iteration":
                    iterations[record["task_id"]].append(_iteration(record))
                else:
                    trees[record["task_id"]] = dataclasses.replace(
                        trees[record["task_id"]], finished=True, error=record["error"]
                    )
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a tree record ({error})") from None
        return {
            task_id: dataclasses.replace(tree, iterations=tuple(iterations[task_id]))
            for task_id, tree in trees.items()
        }


def _iteration(record: dict[str, Any]) -> IterationRecord:
    nodes = tuple(
        NodeRecord(
            node=node["node"],
            parent=node["parent"],
            step=step_from_json(node["step"]),
            multiplicity=node["multiplicity"],
        )
        for node in record["nodes"]
    )
    return IterationRecord(
        task_id=record["task_id"],
        iteration=record["iteration"],
        nodes=nodes,
        path=tuple(record["path"]),
        outcome=record["outcome"],
    )
