"""`agentrm envs`: which environments there are, whether they work, and a way to play them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Split, Task
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import admit_text, first_line, printable
from agentrm_jax.envs.conformance import Finding, findings
from agentrm_jax.envs.contract import (
    Episode,
    admit_prompt,
    blaming,
    kinds_of,
    listed_tasks,
    missing_of,
    reset,
)
from agentrm_jax.envs.measuring import Check, check
from agentrm_jax.envs.registry import environment_names, family_at, load_family
from agentrm_jax.runtime.progress import progress

_SPLITS: tuple[Split, ...] = ("train", "test", "paper")
_MOST = 100_000  # tasks
_MOST_TRIED = 3  # tasks on which promises are tried


def main(arguments: Sequence[str]) -> int:
    """Runs `agentrm envs ...`; returns the exit status."""
    given = _parser().parse_args(arguments)
    commands: Mapping[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "check": _check,
        "play": _play,
    }
    return commands[given.command](given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentrm envs", description="The environments that are registered."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|check|play")
    commands.add_parser("list", help="what is installed, and how many tasks each has")
    tests = commands.add_parser(
        "check", help="plays each one's expert, tries its contract; times resets, steps and forks"
    )
    tests.add_argument("names", metavar="NAME", nargs="*", help="or module:Class (default: all)")
    tests.add_argument("--n", type=int, default=10, help="tasks of each (default 10)")
    tests.add_argument("--split", default="train", choices=_SPLITS)
    tests.add_argument("--json", action="store_true", help="one list of rows on stdout")
    play = commands.add_parser("play", help="you act; scores and steps are shown")
    play.add_argument("name", metavar="NAME")
    play.add_argument("--task", type=int, default=0, help="number in the list (default 0)")
    play.add_argument("--split", default="test", choices=_SPLITS)
    play.add_argument("--kinds", default="", help="levels or domains, separated by commas")
    play.add_argument("--seed", type=int, default=0, help="which tasks are drawn")
    return parser


def _list(given: argparse.Namespace) -> int:
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
        _say(f"{name}: {reason}")
    return 0


def _row(family: EnvironmentFamily) -> list[str]:
    """What an environment lacks or "", its kinds, the sizes of its splits and its metric."""
    counts: Mapping[Split, int | None] = {}
    missing, kinds = missing_of(family), kinds_of(family)
    with blaming(f"environment {family.name!r}: counts"):
        with contextlib.suppress(UserError):
            counts = family.counts()
        sizes = ["endless" if (c := counts.get(s, 0)) is None else f"{c:,}" for s in _SPLITS]
    return [missing, str(len(kinds)), *sizes, str(family.metric)]


def _check(given: argparse.Namespace) -> int:
    _require("--n", given.n, 1, _MOST)
    families = [_family(name) for name in given.names or environment_names()]
    rows: list[Check] = []
    found: dict[str, list[Finding]] = {}
    # Whatever libraries print must not come between the rows.
    with contextlib.redirect_stdout(sys.stderr):
        for family in families:
            with progress(printable(family.name), given.n) as bar:
                row = check(family, given.n, given.split, bar.advance)
            tried = [] if row.expert is None else list(_tried(family, given))
            found[family.name] = tried
            broken = next((f"{f.name}: {f.broken}" for f in tried if f.broken), "")
            if row.ok and broken:
                row = dataclasses.replace(row, ok=False, reason=broken)
            rows.append(row)
    if given.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        Console().print(_table(rows))
        for row in rows:
            _show(row, found[row.name])
    return 0 if all(row.ok for row in rows) else 1


def _tried(family: EnvironmentFamily, given: argparse.Namespace) -> Iterator[Finding]:
    return findings(family, parse_action, min(given.n, _MOST_TRIED), given.split)


def _show(row: Check, tried: Sequence[Finding]) -> None:
    """One line for each promise, or the reason why none could be tried."""
    if row.reason and not any(f.broken for f in tried):
        _say(f"{row.name}: {row.reason}")
    for finding in tried:
        said = finding.broken and f"BROKEN: {finding.broken}"
        _say(f"{row.name}: {finding.name}: {said or finding.skipped or 'ok'}")


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


def _play(given: argparse.Namespace) -> int:
    family = _family(given.name)
    if reason := missing_of(family):
        raise UserError(reason)
    task = _chosen(family, given)
    with blaming(f"environment {family.name!r}, task {task.task_id!r}"):
        _say(admit_prompt(family.prompt()).instruction + "\n")
        episode, text = reset(family.create(), task)
        _say(f"[{task.task_id}: {task.max_steps} steps at most; an empty line ends it]\n")
        _say(text)
        _act(episode)
    _say(f"{family.metric}: {episode.total:.2f}")
    return 0


def _act(episode: Episode) -> None:
    while not episode.done:
        action = _asked(f"\n[step {episode.steps + 1}, score {episode.total:.2f}] > ")
        if not action:
            return
        transition = episode.step(action.removeprefix("Action:").strip())
        _say(transition.observation)
        if transition.done:
            _say("solved" if transition.success else "over")


def _asked(question: str) -> str:
    """A line of the standard input; empty at its end, or if there is none."""
    if sys.stdin is None:
        return ""
    try:
        return input(question).strip()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not text: {first_line(error)}") from None
    except (EOFError, ValueError):  # a closed stream is a ValueError
        return ""


def _chosen(family: EnvironmentFamily, given: argparse.Namespace) -> Task:
    _require("--task", given.task, 0, _MOST)
    _require("--seed", given.seed, 0, 2**63 - 1)
    kinds = given.kinds.split(",") if given.kinds else None
    tasks = listed_tasks(family, given.split, kinds=kinds, n=given.task + 1, seed=given.seed)
    if len(tasks) <= given.task:
        raise UserError(f"--task: split {given.split} has {len(tasks)} tasks, counted from 0")
    return tasks[given.task]


def _family(name: str) -> EnvironmentFamily:
    """A registered environment, or the class `module:Class` of the working folder."""
    if ":" not in name:
        return load_family(name)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return family_at(name)


def _require(option: str, value: int, least: int, most: int) -> None:
    if value < least:
        what = "not be negative" if least == 0 else f"be at least {least}"
        raise UserError(f"{option}: must {what} (got {value})")
    if value > most:
        raise UserError(f"{option}: must be at most {most} (got {value})")


def _cell(text: str) -> Text:
    return Text(_visible(text))


def _say(text: str) -> None:
    print(_visible(text, keep="\n"))


def _visible(text: str, keep: str = "") -> str:
    """The text without control characters, in what the standard output can show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = printable(admit_text(text), keep=keep)
    return shown.encode(encoding, "backslashreplace").decode(encoding)
