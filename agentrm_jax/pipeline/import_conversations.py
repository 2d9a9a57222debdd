"""`agentrm import FILE`: conversations of others as expert trajectories."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from agentrm_jax.data.conversations import read_conversations
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.trajectory_files import environment_of
from agentrm_jax.runtime.output_folders import check_output_folder


def main(arguments: Sequence[str]) -> int:
    """Writes all trajectories of the file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="agentrm import",
        description="Reads trajectories in the conversation format of ETO and AgentGym (a JSON "
        "list of items with `id` or `item_id` and `conversations`) and writes them like an "
        "expert's (TFDS).",
        epilog="Items without `reward` count as solved. The instruction at the beginning of a "
        "conversation is left out: the environment's own prompt takes its place.",
    )
    parser.add_argument("file", metavar="FILE", type=pathlib.Path)
    parser.add_argument(
        "--environment",
        metavar="NAME",
        help="what was played; default: what ids or the file's name begin with",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write")
    given = parser.parse_args(arguments)
    check_output_folder(given.output, [given.file])
    name = given.environment or environment_of(given.file)
    load_family(name)  # an error, if there is no such environment
    trajectories = read_conversations(given.file, name)
    write_trajectories(given.output, trajectories)
    steps = sum(len(t.steps) for t in trajectories) / len(trajectories)
    solved = sum(t.success for t in trajectories)
    without = sum(not step.action for t in trajectories for step in t.steps)
    print(
        f"{given.output}: {len(trajectories)} trajectories of {name}, {solved} of them solved, "
        f"{steps:.1f} steps each; {without} replies without an action"
    )
    return 0
