"""Labelled trees: search trees whose states have values, and their store."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.data.dataset import open_dataset, write_dataset
from agentrm_jax.data.typed_json import from_json

ROOT_PARENT = -1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A path of a labelled tree from its root to a leaf.

    Attributes:
      nodes: Numbers of the nodes, the root first.
      weights: Weight of the label of each node; 0 if it has none or an earlier branch holds it.
    """

    nodes: tuple[int, ...]
    weights: tuple[float, ...]

    def to_last_label(self) -> Branch:
        """Returns the branch without the nodes after its last label."""
        end = max(i for i, weight in enumerate(self.weights) if weight > 0) + 1
        return Branch(nodes=self.nodes[:end], weights=self.weights[:end])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledTree:
    """The states of one task as a tree, with their values.

    M nodes are numbered as in the search tree: 0 is the root, and children have larger numbers than
    their parents.

    Attributes:
      task: The task.
      first_observation: The environment's first observation, the state of the root.
      parents: M numbers; that of the root is -1.
      steps: M - 1 steps; `steps[i]` leads from the parent of node i + 1 to it.
      values: M values of states, in [0, 1].
      visit_counts: M numbers of returns that were backed up through the states.
      weights: M weights of the labels in the loss; 0 if the state has no label.
    """

    task: Task
    first_observation: str
    parents: tuple[int, ...]
    steps: tuple[Step, ...]
    values: tuple[float, ...]
    visit_counts: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def num_labels(self) -> int:
        """The number of states with a label."""
        return sum(weight > 0 for weight in self.weights)

    def path(self, node: int) -> tuple[int, ...]:
        """Returns the numbers of the nodes from the root to a node, both included.

        Args:
          node: Number of the node.
        """
        nodes = [node]
        while nodes[-1]:
            nodes.append(self.parents[nodes[-1]])
        return tuple(reversed(nodes))

    def state(self, node: int) -> Trajectory:
        """Returns the state of a node: the steps from the root to it.

        Args:
          node: Number of the node.
        """
        return Trajectory(
            task=self.task,
            first_observation=self.first_observation,
            steps=tuple(self.steps[number - 1] for number in self.path(node)[1:]),
        )

    def branches(self) -> list[Branch]:
        """Returns the paths to the leaves that hold a label, in the order of the leaves' numbers.

        Each label is held by one branch, the first that passes through its node.
        """
        branches: list[Branch] = []
        passed: set[int] = set()
        for leaf in sorted(set(range(len(self.parents))) - set(self.parents)):
            nodes = self.path(leaf)
            weights = tuple(0.0 if n in passed else self.weights[n] for n in nodes)
            passed.update(nodes)
            if any(weights):
                branches.append(Branch(nodes=nodes, weights=weights))
        return branches


def write_labels(directory: pathlib.Path, trees: Iterable[LabelledTree]) -> int:
    """Writes labelled trees as a data set, which is there whole or not at all.

    Args:
      directory: The folder of the data set.
      trees: The trees.

    Returns:
      The number of trees.

    Raises:
      UserError: There are no trees, or the folder holds files of somebody else.
    """
    return write_dataset(
        directory,
        "labelled states",
        (
            (
                f"{tree.task.task_id}/{number}",
                {"num_nodes": len(tree.parents), "num_labels": tree.num_labels},
                dataclasses.asdict(tree),
            )
            for number, tree in enumerate(trees)
        ),
    )


def open_labels(directory: pathlib.Path) -> Sequence[LabelledTree]:
    """Returns the trees that `write_labels` wrote, in order.

    A data set of an older version, which held root-to-leaf paths, is read as trees: their nodes are
    numbered in the same order, without those that are on no path.

    Args:
      directory: The folder of the data set.

    Raises:
      UserError: The data set is absent or damaged.
    """
    stored = open_dataset(directory, "label", _decoded)
    if isinstance(stored[0], LabelledTree):
        return stored  # type: ignore[return-value]
    by_task: dict[str, list[_Path]] = {}
    for path in stored:
        assert isinstance(path, _Path)
        by_task.setdefault(path.trajectory.task.task_id, []).append(path)
    return [_tree_of_paths(paths) for paths in by_task.values()]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Path:
    """A record of an older data set; the tuples have an item for each state, steps + 1."""

    trajectory: Trajectory
    node_ids: tuple[int, ...]
    values: tuple[float, ...]
    visit_counts: tuple[int, ...]
    weights: tuple[float, ...]


def _tree_of_paths(paths: Sequence[_Path]) -> LabelledTree:
    numbers = sorted({number for path in paths for number in path.node_ids})
    index = {number: i for i, number in enumerate(numbers)}
    parents, visit_counts = [ROOT_PARENT] * len(index), [0] * len(index)
    steps: list[Step | None] = [None] * len(index)
    values, weights = [0.0] * len(index), [0.0] * len(index)
    for path in paths:
        nodes = [index[number] for number in path.node_ids]
        for i, node in enumerate(nodes):
            if i:
                parents[node], steps[node] = nodes[i - 1], path.trajectory.steps[i - 1]
            values[node], visit_counts[node] = path.values[i], path.visit_counts[i]
            weights[node] = max(weights[node], path.weights[i])
    return LabelledTree(
        task=paths[0].trajectory.task,
        first_observation=paths[0].trajectory.first_observation,
        parents=tuple(parents),
        steps=tuple(step for step in steps if step is not None),
        values=tuple(values),
        visit_counts=tuple(visit_counts),
        weights=tuple(weights),
    )


def _decoded(record: Any) -> LabelledTree | _Path:
    if isinstance(record, dict) and "trajectory" in record:
        path = from_json(_Path, record)
        _check_labels(path, len(path.trajectory.steps) + 1, "node_ids")
        return path
    tree = from_json(LabelledTree, record)
    _check_labels(tree, len(tree.steps) + 1, "parents")
    if tree.parents[0] != ROOT_PARENT:
        raise ValueError(f"parents: must begin with {ROOT_PARENT} (got {tree.parents[0]})")
    for node, parent in enumerate(tree.parents[1:], start=1):
        if not 0 <= parent < node:
            raise ValueError(f"parents: that of node {node} must come before it (got {parent})")
    return tree


def _check_labels(labels: LabelledTree | _Path, num_states: int, numbers: str) -> None:
    for name in (numbers, "values", "visit_counts", "weights"):
        if (length := len(getattr(labels, name))) != num_states:
            raise ValueError(f"{name}: must have {num_states} items (got {length})")
    if not all(-1e-6 <= value <= 1 + 1e-6 for value in labels.values):
        raise ValueError("values: must be within 0 and 1")
    if min(labels.weights) < 0 or min(labels.visit_counts) < 0:
        raise ValueError("weights and visit_counts: must be at least 0")
