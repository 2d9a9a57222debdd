"""Conversations of ETO and AgentGym, and ATIF trajectories, as expert trajectories."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.runtime.output_folders import check_output_folder


def import_conversations(
    file: pathlib.Path, output: pathlib.Path, environment: str | None = None
) -> Sequence[Trajectory]:
    """Writes the trajectories of a file as a dataset (TFDS); returns the trajectories.

    Args:
      file: Conversations or ATIF trajectories, as JSON or JSON lines, or the folder of a Harbor
        job.
      output: The folder to write.
      environment: What was played; None if the ids or the file's name begin with it.

    Raises:
      UserError: The environment is not known, the file is damaged, or the folder cannot be written.
    """
    check_output_folder(output, [file])
    trajectories = read_trajectories(file, environment)
    names = sorted({trajectory.task.environment for trajectory in trajectories})
    if len(names) > 1:
        raise UserError(f"{file}: holds trajectories of {', '.join(names)}; import each by itself")
    write_trajectories(output, trajectories)
    return trajectories
