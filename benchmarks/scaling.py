"""Computes what 8B exploration of 5,056 tasks and reward training cost on 1 to 512 chips.

    python -m benchmarks.scaling [--chips 1 8 64 512] [--fraction 0.56] [--json] [--KEY NUMBER ...]

Nothing is run on an accelerator. Three kinds of numbers go in, and the output names each: shortest
times by the compilers (`agentrm plan`, `docs/guides/plan.md`), rates measured on CPUs
(`dev/LOG.md`), and assumptions about the work, which are options of this command. The bound uses
the compilers' times; the forecast divides them by the fraction of its bound that decoding reached
on CPUs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from agentrm_jax.plan.chips import CHIPS
from benchmarks import leases

PARAMETERS = 8.03e9
BYTES = 2  # of a parameter or of a number of a cache, in bfloat16
ROWS = 160  # of the plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The work of the two stages; assumptions about the paper's environments, none is measured.

    Attributes:
      tasks: Number of tasks, one tree each.
      iterations: Iterations of a tree.
      width: Turns that an expansion samples.
      rollout: Turns of a rollout on average.
      turn: Tokens of a turn that are decoded.
      observation: Tokens of an observation that are read.
      prompt: Tokens of a task's prompt, read once for each tree.
      paths: Paths of a tree that training reads, one for each iteration at most.
      path: Tokens of a path.
      epochs: Epochs of training.
    """

    tasks: int = 5056
    iterations: int = 40
    width: int = 5
    rollout: float = 10.0
    turn: float = 60.0
    observation: float = 80.0
    prompt: float = 1500.0
    paths: float = 40.0
    path: float = 1800.0
    epochs: float = 2.0

    @property
    def turns(self) -> float:
        """Turns of a tree."""
        return self.iterations * (self.width + self.rollout)

    @property
    def turns_in_a_row(self) -> float:
        """Turns of a tree that must wait for each other: no number of chips is faster."""
        return self.iterations * (1 + self.rollout)

    @property
    def rows(self) -> float:
        """Rows that a tree decodes at a time on average."""
        return self.turns / self.turns_in_a_row

    @property
    def read(self) -> float:
        """Tokens that are read for a tree, as well as those that were decoded."""
        return self.prompt + self.turns * self.observation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """The engine of a plan, as the compilers bound it.

    Attributes:
      name: The topology of the plan.
      chip: The kind of chip.
      chips: Chips of one process.
      token_seconds: Shortest time of a token of 160 rows, by `agentrm plan --stage explore`.
    """

    name: str
    chip: str
    chips: int
    token_seconds: float

    def token(self, rows: float) -> float:
        """Returns the shortest time of a token of some rows: weights and the rows' contexts."""
        weights = PARAMETERS * BYTES / self.chips / CHIPS[self.chip].bandwidth
        return weights + max(1.0, rows) / ROWS * (self.token_seconds - weights)

    def reading(self) -> float:
        """Returns the shortest time to read a token: two operations for each parameter."""
        return 2 * PARAMETERS / (self.chips * CHIPS[self.chip].flops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The update of a plan, with 64 rows of 4,096 tokens.

    Attributes:
      name: The topology of the plan.
      chip: The kind of chip.
      chips: Chips of the plan.
      seconds: Shortest time of an update, by `agentrm plan --stage train-rm`.
    """

    name: str
    chip: str
    chips: int
    seconds: float


ENGINES = (
    Engine(name="h200:1", chip="h200", chips=1, token_seconds=9.05e-3),
    Engine(name="v5e:2x4", chip="v5e", chips=8, token_seconds=6.63e-3),
    Engine(name="v6e:2x4", chip="v6e", chips=8, token_seconds=3.32e-3),
)
UPDATES = (
    Training(name="h100:8", chip="h100", chips=8, seconds=1.93),
    Training(name="v5p:2x2x2", chip="v5p", chips=8, seconds=4.17),
    Training(name="v6e:4x4", chip="v6e", chips=16, seconds=1.04),
)
UPDATE_ROWS, ROW_TOKENS = 64, 4096


def exploration(
    engine: Engine, chips: int, work: Work, fraction: float, environment: float
) -> dict[str, Any] | None:
    """Returns the figures of an exploration, None if a process does not fit on the chips.

    Args:
      engine: The engine.
      chips: All chips; each process has those of the engine.
      work: The work.
      fraction: Fraction of the compilers' bound that is reached.
      environment: Seconds of an environment's step.
    """
    processes = chips // engine.chips
    if not processes:
        return None
    trees = math.ceil(work.tasks / processes)
    at_once = min(trees, ROWS / work.rows)
    rows = at_once * work.rows
    turn = (work.turn * engine.token(rows) + at_once * work.read / work.turns_in_a_row
            * engine.reading()) / fraction  # fmt: skip
    one_tree = work.turns_in_a_row * (turn + environment)
    seconds = trees / at_once * one_tree
    return {
        "engine": engine.name, "chips": chips, "processes": processes,
        "trees_of_a_process": trees, "rows": round(rows, 1), "minutes": round(seconds / 60, 1),
        "chip_hours": round(chips * seconds / 3600, 1), "one_tree_minutes": round(one_tree / 60, 2),
        "tokens_a_second": round(work.tasks * work.turns * work.turn / seconds),
    }  # fmt: skip


def training(update: Training, chips: int, work: Work, fraction: float) -> dict[str, Any]:
    """Returns the figures of training the reward model: all parameters, sharded over all chips.

    Weights are gathered for both passes and gradients are reduced, whatever the number of chips,
    so that a chip receives three times the bytes of the parameters in each update; a row is on one
    chip, so that no more chips than rows have work.
    """
    chip, busy = CHIPS[update.chip], min(chips, UPDATE_ROWS)
    arithmetic = update.seconds * update.chips / busy
    received = 3 * PARAMETERS * BYTES * (1 - 1 / chips)
    of_one_host = chip.network == 0 or chips <= 8
    links = received / (chip.links if of_one_host else chip.network)
    updates = work.epochs * work.tasks * work.paths * work.path / (UPDATE_ROWS * ROW_TOKENS)
    seconds = updates * max(arithmetic / fraction, links)
    return {
        "plan": update.name, "chips": chips, "busy_chips": busy, "updates": round(updates),
        "arithmetic_seconds": round(arithmetic, 3), "links_seconds": round(links, 3),
        "minutes": round(seconds / 60, 1), "chip_hours": round(chips * seconds / 3600, 1),
        "bound_by": "links" if links > arithmetic / fraction else "arithmetic",
    }  # fmt: skip


def simulated(processes: int, tasks: int) -> dict[str, Any]:
    """Returns the figures of `benchmarks.leases` for a number of hosts that fail."""
    found = leases.measured(leases.Setting(hosts=processes, tasks=tasks))
    keys = ("hosts", "deaths", "freezes", "lost", "recorded_twice", "overhead", "creates_per_task")
    stride = found["fixed_stride_seconds"] / found["ideal_seconds"] - 1
    return {**{key: found[key] for key in keys}, "fixed_stride_overhead": round(stride, 2)}


def computed(given: argparse.Namespace, work: Work) -> dict[str, Any]:
    """Returns all figures."""
    environment = given.environment_ms / 1000
    found: dict[str, Any] = {
        "assumed": dataclasses.asdict(work),
        "fraction": given.fraction,
        "environment_ms": given.environment_ms,
    }
    for label, fraction in (("bound", 1.0), ("forecast", given.fraction)):
        rows = [
            exploration(engine, chips, work, fraction, environment)
            for engine in ENGINES
            for chips in given.chips
        ]
        found[f"exploration_{label}"] = [row for row in rows if row is not None]
        found[f"training_{label}"] = [
            training(update, chips, work, fraction)
            for update in UPDATES
            for chips in given.chips
            if chips >= 8
        ]
    hosts = [each for each in given.chips if each > 1]
    found["leases_simulated"] = [simulated(each, work.tasks) for each in hosts]
    return found


def table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table of Markdown."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(key.replace('_', ' ') for key in rows[0])} |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (
            f"{value:,}" if isinstance(value, int | float) else value for value in row.values()
        )
        print(f"| {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scaling")
    parser.add_argument("--chips", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument(
        "--fraction", type=float, default=0.56,
        help="of its bound that decoding reaches: 8.8 of 15.7 ms on a Xeon (dev/LOG.md)",
    )  # fmt: skip
    parser.add_argument(
        "--environment-ms", type=float, default=5.0, help="a step of an environment, with its fork"
    )
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    for field in dataclasses.fields(Work):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    given = parser.parse_args(arguments)
    work = Work(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Work)})
    found = computed(given, work)
    if not given.json:
        print(f"assumed: {found['assumed']}")
        for key, rows in found.items():
            if isinstance(rows, list):
                table(key.replace("_", " "), rows)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
