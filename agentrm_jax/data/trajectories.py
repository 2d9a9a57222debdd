"""The store of expert trajectories."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from agentrm_jax.core.records import Trajectory, to_json
from agentrm_jax.data.dataset import Dataset, open_dataset, write_dataset
from agentrm_jax.data.typed_json import from_json


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
    """Returns the trajectories of a folder that `write_trajectories` wrote.

    Args:
      directory: The folder.
      made_by: The command that writes such folders, for error messages.
    """
    return open_dataset(directory, made_by, stored_trajectory)


def stored_trajectory(value: Any) -> Trajectory:
    """A trajectory from its JSON form.

    Raises:
      ValueError: A field is missing or of another type, its return is not in [0, 1], or a step
        follows the end.
    """
    trajectory = from_json(Trajectory, value)
    if not -1e-6 <= trajectory.outcome <= 1 + 1e-6:
        raise ValueError(f"its return must be within 0 and 1 (got {trajectory.outcome:.6g})")
    if any(step.transition.done for step in trajectory.steps[:-1]):
        raise ValueError("a step follows the end of the episode")
    return trajectory
