"""`agentrm envs`: lists the environments, checks whether they work, and plays one."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrm_jax.cli.parser import Parser, choice, whole_number
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Split, Task
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs.checking import checked
from agentrm_jax.envs.conformance import Finding
from agentrm_jax.envs.contract import (
    Episode,
    admit_prompt,
    blaming,
    kinds_of,
    listed_tasks,
    missing_of,
    reset,
)
from agentrm_jax.envs.measuring import Check
from agentrm_jax.envs.registry import environment_names, load_family, named_family
from agentrm_jax.runtime.console import read_line, say, visible
from agentrm_jax.runtime.progress import progress

_SPLITS: tuple[Split, ...] = ("train", "test", "paper")
_MOST = 100_000  # tasks


def list_add_arguments(parser: Parser) -> None:
    """`envs list` has no arguments."""


def list_run(given: argparse.Namespace) -> int:
    table = Table("name", "ready", "kinds", *_SPLITS, "return")
    lacking: dict[str, str] = {}
    for name in environment_names():
        try:
            reason, *row = _row(load_family(name))
        except UserError as error:
            reason = first_line(error, limit=1000)
            row = ["", *[""] * len(_SPLITS), ""]
        if reason:
            lacking[name] = reason
        table.add_row(*map(_cell, (name, "no" if reason else "yes", *row)))
    Console().print(table)
    for name, reason in lacking.items():
        say(f"{name}: {reason}")
    return 0


def _row(family: EnvironmentFamily) -> list[str]:
    """The cells of an environment: what it lacks, number of kinds, sizes of splits, metric."""
    counts: Mapping[Split, int | None] = {}
    missing, kinds = missing_of(family), kinds_of(family)
    with blaming(f"environment {family.name!r}: counts"):
        with contextlib.suppress(UserError):
            counts = family.counts()
        sizes = [_size(counts.get(split, 0)) for split in _SPLITS]
    return [missing, str(len(kinds)), *sizes, str(family.metric)]


def _size(count: int | None) -> str:
    return "endless" if count is None else f"{count:,}"


def check_add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="names, or module:Class (default: all)"
    )
    parser.add_argument(
        "--n", type=whole_number(1, _MOST), default=10, help="tasks of each (default: 10)"
    )
    parser.add_argument(
        "--split",
        **choice(*_SPLITS),
        default="train",
        help="list of tasks (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one list of rows")
    parser.add_argument("--config", type=pathlib.Path, help="configuration with their options")


def check_run(given: argparse.Namespace) -> int:
    families = [family_of(name, given.config) for name in given.names or environment_names()]
    results: list[tuple[Check, list[Finding]]] = []
    # Output of libraries must not come between the rows.
    with contextlib.redirect_stdout(sys.stderr):
        for family in families:
            with progress(printable(family.name), given.n) as bar:
                results.append(checked(family, given.n, given.split, bar.advance))
    rows = [row for row, _ in results]
    if given.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        Console().print(_table(rows))
        for row, tried in results:
            _print_findings(row, tried)
    return 0 if all(row.ok for row in rows) else 1


def _print_findings(row: Check, tried: Sequence[Finding]) -> None:
    """Prints a line for each rule of the contract, or why no rule could be tried."""
    if row.reason and not any(finding.broken for finding in tried):
        say(f"{row.name}: {row.reason}")
    for finding in tried:
        result = finding.skipped or "ok"
        if finding.broken:
            result = f"BROKEN: {finding.broken}"
        say(f"{row.name}: {finding.name}: {result}")


def _table(rows: Sequence[Check]) -> Table:
    table = Table("name", "works", "reset ms", "step ms", "fork ms", "expert")
    for row in rows:
        figures = [
            "" if value is None else f"{value:.3g}"
            for value in (row.reset_ms, row.step_ms, row.fork_ms)
        ]
        expert = "" if row.expert is None else f"{row.expert:.0%}"
        table.add_row(_cell(row.name), "yes" if row.ok else "no", *figures, expert)
    return table


def play_add_arguments(parser: Parser) -> None:
    """Adds an environment and the choice of a task; `agentrm chat` has the same."""
    parser.add_argument("name", metavar="NAME", help="an environment, or module:Class")
    number = whole_number(0, _MOST)
    parser.add_argument("--task", type=number, default=0, help="number in the list (default: 0)")
    parser.add_argument(
        "--split",
        **choice(*_SPLITS),
        default="test",
        help="list of tasks (default: %(default)s)",
    )
    parser.add_argument("--kinds", default="", help="levels or domains, separated by commas")
    parser.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, help="seed of the task list"
    )
    parser.add_argument("--config", type=pathlib.Path, help="configuration with their options")


def play_run(given: argparse.Namespace) -> int:
    family = family_of(given.name, given.config)
    if reason := missing_of(family):
        raise UserError(reason)
    task = chosen_task(family, given)
    with blaming(f"environment {family.name!r}, task {task.task_id!r}"):
        say(admit_prompt(family.prompt()).instruction + "\n")
        episode, text = reset(family.create(), task)
        say(f"[{task.task_id}: at most {task.max_steps} steps; an empty line ends the episode]\n")
        say(text)
        _play_episode(episode)
    say(f"{family.metric}: {episode.total:.2f}")
    return 0


def _play_episode(episode: Episode) -> None:
    while not episode.done:
        action = read_line(f"\n[step {episode.steps + 1}, score {episode.total:.2f}] > ")
        if not action:
            return
        transition = episode.step(action.removeprefix("Action:").strip())
        say(transition.observation)
        if transition.done:
            say("solved" if transition.success else "over")


def chosen_task(family: EnvironmentFamily, given: argparse.Namespace) -> Task:
    """Returns the task that the arguments of `play` name."""
    kinds = given.kinds.split(",") if given.kinds else None
    tasks = listed_tasks(family, given.split, kinds=kinds, n=given.task + 1, seed=given.seed)
    if len(tasks) <= given.task:
        raise UserError(f"--task: split {given.split} has {len(tasks)} tasks, counted from 0")
    return tasks[given.task]


def family_of(name: str, config: pathlib.Path | None = None) -> EnvironmentFamily:
    """Returns an environment, with the options that a configuration has for it."""
    if config is None:
        return named_family(name)
    from agentrm_jax.pipeline.families import configured_family

    return configured_family(name, config)


def _cell(text: str) -> Text:
    return Text(visible(text))
