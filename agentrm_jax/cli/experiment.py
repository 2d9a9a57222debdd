"""`agentrm experiment NAME`: a row of the paper or one of its open questions, from one file."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser
from agentrm_jax.core.errors import UserError

_DESCRIPTION = """\
Runs an experiment of configs/experiments, or of another YAML file: its stages, each once for all
runs that share it, then its tables. An interrupted experiment resumes. Without NAME the experiments
are listed. `--KEY=VALUE` sets a key of all runs, except where a run sets it itself, for example
--policy=FOLDER."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("name", metavar="NAME", nargs="?", help="an experiment, or a YAML file")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=pathlib.Path,
        default=pathlib.Path("runs", "experiments"),
        help="folder of experiments, which share stages (default: runs/experiments)",
    )
    parser.add_argument(
        "--size", default="laptop", metavar="SIZE", help="size: laptop (default), tiny or paper"
    )
    parser.add_argument(
        "--seeds", metavar="A,B", help="training seeds; every run once for each (default: its own)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print stages, tokens and time; run nothing"
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.experiments import load
    from agentrm_jax.pipeline.experiments.run import print_plan, run_experiment

    if given.name is None:
        for name in load.experiment_names():
            header = load.load_header(load.find_experiment(name))
            print(f"{name:<24}{header.title} (about {header.time} on a laptop)")
        return 0
    path = load.find_experiment(given.name)
    experiment = load.load_experiment(
        path, size=given.size, seeds=_seeds(given.seeds), overrides=given.overrides
    )
    if given.dry_run:
        print_plan(experiment, given.output)
        return 0
    run_experiment(experiment, given.output)
    return 0


def _seeds(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds must be whole numbers such as 0,1,2 (got {text})") from None
