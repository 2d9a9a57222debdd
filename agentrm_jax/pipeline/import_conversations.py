"""Conversations of ETO and AgentGym as expert trajectories."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.conversations import read_conversations
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.trajectory_files import environment_of
from agentrm_jax.runtime.output_folders import check_output_folder


def import_conversations(
    file: pathlib.Path, output: pathlib.Path, environment: str | None = None
) -> Sequence[Trajectory]:
    """Writes the conversations of a file as a dataset (TFDS); returns the trajectories.

    Args:
      file: A JSON list of conversations.
      output: The folder to write.
      environment: What was played; None if the ids or the file's name begin with it.

    Raises:
      UserError: The environment is not known, the file is damaged, or the folder cannot be written.
    """
    check_output_folder(output, [file])
    name = environment or environment_of(file)
    load_family(name)  # raises if there is no such environment
    trajectories = read_conversations(file, name)
    write_trajectories(output, trajectories)
    return trajectories
