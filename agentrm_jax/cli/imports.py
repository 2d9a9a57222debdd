"""`agentrm import FILE`: trajectories of others as expert trajectories."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.description = """\
Reads conversations of ETO and AgentGym (items with `id` or `item_id` and `conversations`, as a JSON
list or JSON lines), trajectories in Harbor's format (ATIF), or the folder of a Harbor job, and
writes them as `agentrm demonstrate` does. Conversations without `reward` count as solved;
instructions at their beginning are removed."""
    parser.add_argument(
        "file", metavar="FILE", type=pathlib.Path, help="conversations, or a trajectory of Harbor"
    )
    parser.add_argument(
        "--environment",
        metavar="NAME",
        help="what was played (default: the beginning of the ids or of the file's name)",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=pathlib.Path, required=True, help="folder to write"
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.import_conversations import import_conversations

    trajectories = import_conversations(given.file, given.output, given.environment)
    steps = sum(len(t.steps) for t in trajectories) / len(trajectories)
    solved = sum(t.success for t in trajectories)
    without = sum(not step.action for t in trajectories for step in t.steps)
    name = trajectories[0].task.environment
    print(
        f"{given.output}: {len(trajectories)} trajectories of {name}, {solved} of them solved, "
        f"{steps:.1f} steps each; {without} replies without an action"
    )
    return 0
