"""The store of labels: trajectories with the values of their states."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from agentrm_jax.core.records import Trajectory, to_json
from agentrm_jax.data.dataset import Dataset, open_dataset, write_dataset
from agentrm_jax.data.typed_json import from_json


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledPath:
    """A root-to-leaf path of a tree. All tuples have an entry for each state: steps + 1.

    Attributes:
      node_ids: The states' node numbers.
      values: What each is worth, in [0, 1].
      visit_counts: How many returns were backed up through each.
      weights: How much each label counts; 0 where there is none, or another path carries it.
    """

    trajectory: Trajectory
    node_ids: tuple[int, ...]
    values: tuple[float, ...]
    visit_counts: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def num_labels(self) -> int:
        return sum(weight > 0 for weight in self.weights)


def write_paths(directory: pathlib.Path, paths: Iterable[LabelledPath]) -> int:
    """Writes them all, or nothing; gives their number."""
    return write_dataset(
        directory,
        "labelled states",
        (
            (
                f"{path.trajectory.task.task_id}/{path.node_ids[-1]}",
                {"num_steps": len(path.trajectory.steps), "num_labels": path.num_labels},
                {
                    "trajectory": to_json(path.trajectory),
                    "node_ids": path.node_ids,
                    "values": path.values,
                    "visit_counts": path.visit_counts,
                    "weights": path.weights,
                },
            )
            for path in paths
        ),
    )


def open_paths(directory: pathlib.Path) -> Dataset[LabelledPath]:
    return open_dataset(directory, "label", _path)


def _path(value: Any) -> LabelledPath:
    path = from_json(LabelledPath, value)
    states = len(path.trajectory.steps) + 1
    for name in ("node_ids", "values", "visit_counts", "weights"):
        if len(getattr(path, name)) != states:
            raise ValueError(f"{name}: must have {states} entries (got {len(getattr(path, name))})")
    if not all(-1e-6 <= worth <= 1 + 1e-6 for worth in path.values):
        raise ValueError("values: must be within 0 and 1")
    if min(path.weights) < 0 or min(path.visit_counts) < 0:
        raise ValueError("weights and visit_counts: must be at least 0")
    return path
