"""Times of environments and of the originals: resets, steps, forks, calls through the pool.

    python -m benchmarks.environments [--tiny] [NAME ...]

Every environment that is installed plays its expert's actions on the same tasks: in this process
and through a pool of two workers, in turn (`pool_ms`: the time that the pool adds to a step). Three
environments are also compared with their originals:
  scienceworld  the library's `step`, which lists all valid actions
  alfworld      the unmodified library on the same commands; the texts must be the same
  webshop       40 ms for a step of the original (25 a second), a figure from another machine
`--search` grows trees on ALFWorld and ScienceWorld with a small policy, which it trains first
(`environments.yaml`); `--policy` names the folder of a run that has trained it. The result is the
fraction of the time in which the search waits for environments, with and without overlap.

Exactness: answers through the pool equal those in this process; ALFWorld's texts equal those of the
unmodified library.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from agentrm_jax.core.protocols import EnvironmentFamily, EnvironmentPool
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.envs.measuring import check
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import environment_names, load_family
from benchmarks import measuring, originals, waiting
from benchmarks.search import trained_policy

TINY = ("maze", "pddl")
SEARCHED = ("alfworld", "scienceworld")
CONFIG = pathlib.Path(__file__).with_suffix(".yaml")
ENGINE = EngineConfig(
    context=2048, decode_rows=32, extend_rows=8, cache_tokens=262_144, instruction_tokens=1
)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("environments", __doc__, rounds=3)
    parser.add_argument("names", metavar="NAME", nargs="*", help="default: all installed ones")
    parser.add_argument("--tasks", type=int, help="tasks of each environment (default: 10)")
    parser.add_argument("--search", action="store_true", help="also grow trees; takes minutes")
    parser.add_argument("--policy", type=pathlib.Path, help="run folder of the policy of --search")
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    names = given.names or (TINY if given.tiny else environment_names())
    n = given.tasks or (2 if given.tiny else 10)
    found: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    pool = EnvPool(workers=2)
    try:
        for name in names:
            row = measure(load_family(name), pool, n, given.rounds)
            print(f"{name}: {row}", flush=True)
            found[name] = row
    finally:
        pool.close()
    for name, compare in originals.COMPARISONS.items():
        if name in found and found[name]["ok"]:
            compared = compare(steps=20 if given.tiny else 200)
            found[name]["original"] = compared
            ratios[f"ratio_{name}"] = compared["ratio"]
            print(f"{name} against the original: {compared}", flush=True)
    if given.search:
        with tempfile.TemporaryDirectory() as folder:
            model = trained_policy(given.policy or pathlib.Path(folder), CONFIG)
            for name in SEARCHED:
                if name in found and found[name]["ok"]:
                    found[name]["search"] = waiting.share(name, model, ENGINE, waiting.Sizes())
                    print(f"{name} in a search: {found[name]['search']}", flush=True)
    worst = max((row["pool_ms"] for row in found.values() if "pool_ms" in row), default=0.0)
    return measuring.finish(
        "environments", {**ratios, "worst_pool_ms": worst, "environments": found}, threads
    )


def measure(
    family: EnvironmentFamily, pool: EnvironmentPool, n: int, rounds: int
) -> dict[str, Any]:
    """Returns the figures of `envs check`, and the time that the pool adds to a step."""
    row = dataclasses.asdict(check(family, n))
    if not row["ok"]:
        return row
    tasks = family.tasks("train", kinds=family.kinds(), n=n)
    plans = [(task, [turn.action for turn in family.demonstrate(task) or []]) for task in tasks]
    plans = [(task, plan) for task, plan in plans if plan]
    here: list[float] = []
    there: list[float] = []
    equal = True
    for _ in range(rounds + 1):  # the first round warms up
        mine, theirs = [_played_here(family, *one) for one in plans], _played_there(pool, plans)
        equal &= [a for a, _ in mine] == [a for a, _ in theirs]
        here.append(_mean_ms([s for _, s in mine]))
        there.append(_mean_ms([s for _, s in theirs]))
    row["pool_ms"] = statistics.median(there[1:]) - statistics.median(here[1:])
    row["answers_equal"] = equal
    row["pooled"] = family.pooled
    return row


Played = tuple[list[Transition], list[float]]
"""The answers of an episode, and the seconds of each step."""


def _played_here(family: EnvironmentFamily, task: Task, plan: Sequence[str]) -> Played:
    environment = family.create()
    environment.reset(task)
    answers, seconds = [], []
    for action in plan:
        begin = time.perf_counter()
        answers.append(environment.step(action))
        seconds.append(time.perf_counter() - begin)
        if answers[-1].done:
            break
    return answers, seconds


def _played_there(pool: EnvironmentPool, plans: Sequence[tuple[Task, list[str]]]) -> list[Played]:
    """Plays one episode after another: the pool's overhead is measured, not its parallelism."""
    played = []
    for task, plan in plans:
        [started] = pool.reset([task])
        answers: list[Any] = []
        seconds: list[float] = []
        if isinstance(started, tuple):
            for action in plan:
                begin = time.perf_counter()
                answers += pool.step([(started[0], action)])
                seconds.append(time.perf_counter() - begin)
                if not isinstance(answers[-1], Transition) or answers[-1].done:
                    break
            pool.release([started[0]])
        played.append((answers, seconds))
    return played


def _mean_ms(seconds: Sequence[Sequence[float]]) -> float:
    return 1000 * statistics.mean(s for own in seconds for s in own)


if __name__ == "__main__":
    main()
