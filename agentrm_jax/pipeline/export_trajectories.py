"""Trajectories in Harbor's format (ATIF), one file for each."""

from __future__ import annotations

import importlib.metadata
import pathlib

from agentrm_jax.core.json_values import json_text
from agentrm_jax.data.atif import atif_of
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.runtime.output_folders import check_output_folder, new_folder


def export_trajectories(source: pathlib.Path, output: pathlib.Path) -> str:
    """Writes the trajectories of a folder or file as ATIF files `000001.json`, `000002.json`, ...

    Args:
      source: A folder or file that `read_trajectories` reads.
      output: The folder to write.

    Returns:
      One line that says what was written.

    Raises:
      UserError: There are no trajectories, or the folder cannot be written.
    """
    check_output_folder(output, [source])
    trajectories = read_trajectories(source)
    version = importlib.metadata.version("agentrm-jax")
    with new_folder(output) as folder:
        for number, trajectory in enumerate(trajectories, start=1):
            text = json_text(atif_of(trajectory, version), indent=1)
            (folder / f"{number:06}.json").write_text(text + "\n", encoding="utf-8")
    return f"{output}: {len(trajectories)} trajectories in ATIF, read from {source}"
