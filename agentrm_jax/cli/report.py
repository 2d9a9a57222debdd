"""`agentrm report`: the report of a run again, or one report of several runs."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser, whole_number
from agentrm_jax.core.errors import UserError

_DESCRIPTION = """\
Writes report.html, report.json and results.json. With CONFIG it reads the run in DIR and writes
there. With the folders of runs it needs no CONFIG: one run is written into its own folder unless
DIR is given; several are compared and written into DIR. Runs whose settings differ in the seed
alone are averaged within each task. A run that lacks a method is compared without it."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "sources",
        metavar="RUN",
        nargs="+",
        type=pathlib.Path,
        help="folders of runs, or one configuration",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=pathlib.Path, help="folder of the run, or of the comparison"
    )
    parser.add_argument(
        "--tasks",
        metavar="N",
        type=whole_number(0, 100_000),
        default=100,
        help="most tasks whose searches are shown (default: 100)",
    )
    parser.add_argument(
        "--scores",
        metavar="DIR",
        type=pathlib.Path,
        nargs="+",
        default=[],
        help="folders that `agentrm eval-rm` wrote: their scores are shown in the trees",
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline import runner
    from agentrm_jax.pipeline.compare_runs import compare_runs
    from agentrm_jax.pipeline.load_config import load_config
    from agentrm_jax.pipeline.report_searches import Shown
    from agentrm_jax.runtime.processes import check_joined, ended_with_others, join
    from agentrm_jax.runtime.run_paths import RunPaths

    first, *others = given.sources
    shown = Shown(tasks=given.tasks, scores=tuple(given.scores))
    if first.is_dir() and (others or given.output):
        if given.overrides:
            raise UserError(f"{given.overrides[0]}: runs are compared as they are; leave it out")
        if not given.output:
            raise UserError("--output is missing: the folder of the comparison")
        compare_runs(given.sources, given.output, shown)
        return 0
    if others:
        raise UserError(f"{first}: no folder; give one CONFIG, or folders of runs")
    if not first.is_dir() and not given.output:
        raise UserError("--output is missing: the folder of the run")
    path = RunPaths(first).config if first.is_dir() else first
    config = load_config(path, given.overrides)
    join(config.distributed)
    check_joined()
    with ended_with_others():
        runner.report(config, given.output or first, shown)
    return 0
