"""`agentrm score FILE`: scores of trajectories, step by step."""

from __future__ import annotations

import argparse
import pathlib
import sys

from agentrm_jax.cli.commands import add_model_arguments
from agentrm_jax.cli.parser import Parser
from agentrm_jax.runtime.run_paths import ROLLOUTS, STAGE_FOLDERS, TREES

_STAGES = ("experts", "explore", "label", "sample", "evaluate")
_FOLDERS = ", ".join(STAGE_FOLDERS[stage] for stage in _STAGES)
_DESCRIPTION = f"""\
Scores trajectories with a reward model, without an environment, and writes one JSON line for each:

  task_id            the task
  score              of the whole trajectory: the last of the scores below that is not null
  outcome            the return that is stored with it (1 for conversations without one)
  start              the score before any step
  after_action       for each step, before the environment has answered
  after_observation  for each step, after the observation; null if a conversation ends with a
                     reply
  truncated_steps    the number of steps that did not fit into the context: the oldest, which
                     were left out, and those that were shortened

FILE is a folder of a run ({_FOLDERS}; of trees: each path that was
backed up), a folder that `agentrm import` wrote, a {TREES} or {ROLLOUTS}, or
conversations as ETO and AgentGym write them (JSON or JSON lines), or ATIF files of Harbor."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("file", metavar="FILE", type=pathlib.Path, help="trajectories")
    add_model_arguments(parser)
    parser.add_argument("--output", type=pathlib.Path, help="file to write (default: stdout)")
    parser.add_argument(
        "--environment",
        metavar="NAME",
        help="what was played in conversations (default: the beginning of the ids or of the file's "
        "name)",
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.score_trajectories import score_trajectories

    summary = score_trajectories(
        given.file,
        given.model,
        given.output,
        environment=given.environment,
        config=given.config,
        overrides=given.overrides,
    )
    where = f" in {given.output}" if given.output else ""
    print(f"{summary.trajectories} trajectories scored{where}", file=sys.stderr)
    if summary.truncated:
        print(
            f"{summary.truncated} of them have truncated steps: they are longer than "
            f"engine.context, {summary.context} tokens",
            file=sys.stderr,
        )
    return 0
