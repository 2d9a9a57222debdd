"""`agentrm merge RUN`: joins and checks the results that processes with leases left."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser

_DESCRIPTION = """\
Joins the results that processes with leases left in a run, if they ended before they did it
themselves, and reads everything again: checksums, the order of the records, records that are there
twice, tasks that are missing. No process may work in the folder. With leases.store it also reads
the results of other hosts from the bucket. The status is 1 if tasks are missing or unfinished; the
command of the run resumes them."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="folder of a run")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.core.text import printable
    from agentrm_jax.pipeline.merge_shards import merge_shards

    files = merge_shards(given.run)
    for each in files:
        line = f"{each.path}: {each.complete} of {each.tasks} tasks complete"
        for kind, tasks in (("unfinished", each.unfinished), ("missing", each.missing)):
            if tasks:
                shown = ", ".join(map(printable, tasks[:3])) + (", ..." if tasks[3:] else "")
                line += f", {len(tasks)} {kind} ({shown})"
        print(line)
    if not files:
        print(f"{given.run}: holds no trees and no trajectories yet")
    return int(any(each.unfinished or each.missing for each in files))
