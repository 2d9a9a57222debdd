"""`agentrm envs`: which environments there are, whether they work, and a way to play them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.progress import progress
from agentrm_jax.core.records import Split, Task
from agentrm_jax.envs.measuring import Check, check
from agentrm_jax.envs.registry import environment_names, load_family

_SPLITS: tuple[Split, ...] = ("train", "test", "paper")


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
        "check", help="plays each one's expert; times resets, steps and forks"
    )
    tests.add_argument("names", metavar="NAME", nargs="*", help="(default: all)")
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
    missing: dict[str, str] = {}
    for name in environment_names():
        family = load_family(name)
        if reason := family.missing():
            missing[name] = reason
        counts: Mapping[Split, int | None] = {}
        with contextlib.suppress(UserError):
            counts = family.counts()
        sizes = ["endless" if (c := counts.get(s, 0)) is None else f"{c:,}" for s in _SPLITS]
        ready = "no" if name in missing else "yes"
        table.add_row(name, ready, str(len(family.kinds())), *sizes, family.metric)
    Console().print(table)
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    return 0


def _check(given: argparse.Namespace) -> int:
    names = given.names or environment_names()
    families = [load_family(name) for name in names]
    rows: list[Check] = []
    # Whatever libraries print must not come between the rows.
    with contextlib.redirect_stdout(sys.stderr):
        for family in families:
            with progress(family.name, given.n) as bar:
                rows.append(check(family, given.n, given.split, bar.advance))
    if given.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        Console().print(_table(rows))
        for row in rows:
            if row.reason:
                print(f"{row.name}: {row.reason}")
    return 0 if all(row.ok for row in rows) else 1


def _table(rows: Sequence[Check]) -> Table:
    table = Table("name", "works", "reset ms", "step ms", "fork ms", "expert")
    for row in rows:
        figures = [
            "" if value is None else f"{value:.3g}"
            for value in (row.reset_ms, row.step_ms, row.fork_ms)
        ]
        expert = "" if row.expert is None else f"{row.expert:.0%}"
        table.add_row(row.name, "yes" if row.ok else "no", *figures, expert)
    return table


def _play(given: argparse.Namespace) -> int:
    family = load_family(given.name)
    if reason := family.missing():
        raise UserError(reason)
    task = _chosen(given)
    print(family.prompt().instruction, end="\n\n")
    environment = family.create()
    print(f"[{task.task_id}: {task.max_steps} steps at most; an empty line ends it]\n")
    print(environment.reset(task))
    outcome = 0.0
    for number in range(1, task.max_steps + 1):
        try:
            action = input(f"\n[step {number}, score {outcome:.2f}] > ").strip()
        except EOFError:
            action = ""
        if not action:
            break
        transition = environment.step(action.removeprefix("Action:").strip())
        outcome += transition.reward
        print(transition.observation)
        if transition.done:
            print("solved" if transition.success else "over")
            break
    print(f"{family.metric}: {outcome:.2f}")
    return 0


def _chosen(given: argparse.Namespace) -> Task:
    family = load_family(given.name)
    kinds = given.kinds.split(",") if given.kinds else family.kinds()
    if given.task < 0:
        raise UserError(f"--task: must not be negative, not {given.task}")
    tasks = family.tasks(given.split, kinds=kinds, n=given.task + 1, seed=given.seed)
    if len(tasks) <= given.task:
        raise UserError(f"--task: split {given.split} has {len(tasks)} tasks, counted from 0")
    return tasks[given.task]
