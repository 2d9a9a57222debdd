"""`agentrm run` and the commands of its stages: they take a configuration."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=pathlib.Path, help="a YAML file")
    parser.add_argument(
        "--output", metavar="DIR", type=pathlib.Path, required=True, help="folder of the run"
    )
    if parser.prog != "agentrm report":
        parser.add_argument(
            "--from",
            metavar="RUN|FILE",
            dest="source",
            type=pathlib.Path,
            help="another run: its finished stages that CONFIG leaves as they were are linked into "
            "DIR; or a file of logged trajectories (.json, .jsonl), which sets `trajectories`",
        )
    if parser.prog == "agentrm run":
        parser.appendix = _keys  # takes a second, because it imports every section
    else:
        parser.epilog = f"{parser.epilog}\n\n`agentrm run --help` lists the keys of CONFIG."


def _keys() -> str:
    from agentrm_jax.pipeline.config import RunConfig
    from agentrm_jax.pipeline.config_keys import keys_help

    return f"""\
The keys of CONFIG, as options that set them, with their defaults:

  --config=FILE
        Another YAML file; its keys replace those of CONFIG.

{keys_help(RunConfig)}"""


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline import runner
    from agentrm_jax.pipeline.load_config import load_config
    from agentrm_jax.runtime.processes import check_joined, ended_with_others, join, stoppable

    source, of_logs = runner.run_or_logs(getattr(given, "source", None))
    config = load_config(given.config, [*given.overrides, *of_logs])
    join(config.distributed)
    check_joined()
    with ended_with_others(), stoppable():
        if source is not None:
            runner.link_stages(config, given.output, source)
        if given.command == "run":
            runner.run_all(config, given.output)
        else:
            runner.run_stage(config, given.output, given.command)
    return 0
