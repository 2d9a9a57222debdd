"""`agentrm demonstrate NAME`: expert trajectories of one environment, without a configuration."""

from __future__ import annotations

import argparse
import pathlib
import sys

from agentrm_jax.cli.parser import Parser, choice, whole_number

_MOST_TASKS = 1_000_000  # as `experts.num_tasks` of a run
_SLOW = 10_000  # tasks; listing more takes some seconds


def add_arguments(parser: Parser) -> None:
    from agentrm_jax.envs.registry import environment_names

    parser.description = """\
Plays the expert of an environment and writes the successful trajectories as a data set of
TensorFlow Datasets. The stage of a run that does this for all environments of a configuration is
`agentrm experts`."""
    parser.add_argument("name", metavar="NAME", help=", ".join(environment_names()))
    parser.add_argument(
        "--split",
        **choice("train", "test", "paper"),
        default="train",
        help="list of tasks (default: %(default)s)",
    )
    parser.add_argument(
        "--n", type=whole_number(1, _MOST_TASKS), default=100, help="tasks to solve (default: 100)"
    )
    parser.add_argument("--kinds", default="", help="levels or domains, separated by commas")
    parser.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, help="seed of the task list"
    )
    parser.add_argument(
        "--workers", type=whole_number(0, 4096), default=0, help="environment processes"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=pathlib.Path, required=True, help="folder to write"
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.demonstrate import demonstrate

    if given.n > _SLOW:
        print(f"{given.name}: listing tasks; {given.n} take a while", file=sys.stderr)
    trajectories, count = demonstrate(
        given.name,
        given.output,
        split=given.split,
        kinds=given.kinds.split(",") if given.kinds else None,
        n=given.n,
        seed=given.seed,
        workers=given.workers,
    )
    steps = sum(len(t.steps) for t in trajectories) / len(trajectories)
    print(
        f"{given.output}: {len(trajectories)} trajectories of {count} tasks, {steps:.1f} steps each"
    )
    return 0
