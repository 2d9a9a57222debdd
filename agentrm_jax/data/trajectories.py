"""The store of expert trajectories."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from agentrm_jax.core.records import Trajectory, to_json, trajectory_from_json
from agentrm_jax.data.dataset import Dataset, open_dataset, write_dataset


def write_trajectories(directory: pathlib.Path, trajectories: Iterable[Trajectory]) -> int:
    """Writes them all, or nothing; gives their number."""
    return write_dataset(
        directory,
        "trajectories",
        (
            (
                trajectory.task.task_id,
                {"outcome": trajectory.outcome, "num_steps": len(trajectory.steps)},
                to_json(trajectory),
            )
            for trajectory in trajectories
        ),
    )


def open_trajectories(directory: pathlib.Path, made_by: str = "experts") -> Dataset[Trajectory]:
    """What `write_trajectories` wrote; an error names the command `made_by`."""
    return open_dataset(directory, made_by, trajectory_from_json)
