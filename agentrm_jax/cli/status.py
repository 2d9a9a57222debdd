"""`agentrm status RUN`: who works on a run with leases, and on which tasks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

from agentrm_jax.cli.parser import Parser

_DESCRIPTION = """\
Shows the processes that share a run by leases (leases.enabled, or distributed.coordinator): who is
alive, who holds which task and for how long, how many tasks have a result and how many are left,
and which leases are stale, so that the next process takes them over. It only reads."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="folder of a run")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.run_status import run_status
    from agentrm_jax.pipeline.status_lines import status_lines

    status = run_status(given.run)
    if given.json:
        print(json.dumps(dataclasses.asdict(status), indent=2))
    else:
        print("\n".join(status_lines(status)))
    return 0
