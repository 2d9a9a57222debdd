"""`agentrm import FILE`: conversations of others as expert trajectories."""

from __future__ import annotations

import argparse
import itertools
import pathlib
import re
from collections.abc import Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.output_folders import check_output_folder
from agentrm_jax.data.conversations import item_names, read_conversations
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.envs.registry import environment_names, load_family

# What ETO and AgentGym call environments in their ids and file names.
_THEIR_NAMES = {
    "sciworld": "scienceworld",
    "lmrlgym_maze": "maze",
    "tool_weather": "toolquery",
    "tool_movie": "toolquery",
    "tool_academia": "toolquery",
    "tool_todo": "tooloperation",
    "tool_sheet": "tooloperation",
}


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


def environment_of(file: pathlib.Path) -> str:
    """The environment that the first id of a file of conversations, or its name, begins with.

    Raises:
      UserError: Neither names one, or there is no such file.
    """
    known = {**{name: name for name in environment_names()}, **_THEIR_NAMES}
    for text in (*itertools.islice(item_names(file), 1), file.name):
        for theirs in sorted(known, key=len, reverse=True):
            if re.match(rf"{re.escape(theirs)}(?![a-z])", text.lower()):
                return known[theirs]
    if not file.exists():
        raise UserError(f"{file}: not found")
    raise UserError(
        f"{file}: neither its ids nor its name say which environment was played; give "
        "--environment NAME"
    )
