"""`agentrm watch RUN`: a live view of a run, from its files."""

from __future__ import annotations

import argparse
import pathlib
import time

from agentrm_jax.cli.parser import Parser

_DESCRIPTION = """\
Shows how far a run is: finished stages, the stage at work with its speed and the time that is
left, trees, states by visits, losses, returns. It reads files alone, so the run may work on another
machine that shares the disk, or have ended. Ctrl-C ends the view, never the run."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="folder of a run")
    parser.add_argument("--once", action="store_true", help="print the view once and end")
    parser.add_argument(
        "--every",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="seconds between updates (default: 2)",
    )


def run(given: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from agentrm_jax.core.errors import UserError
    from agentrm_jax.pipeline.run_table import view_table
    from agentrm_jax.pipeline.run_view import RunWatcher

    if not 0.1 <= given.every <= 3600:
        raise UserError(f"--every must be within 0.1 and 3600 seconds (got {given.every:g})")
    watcher = RunWatcher(given.run)
    console = Console(width=None if Console().is_terminal else 100)
    if given.once or not console.is_terminal:
        console.print(view_table(given.run, watcher.look()))
        return 0
    with Live(view_table(given.run, watcher.look()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(given.every)
            live.update(view_table(given.run, watcher.look()), refresh=True)
