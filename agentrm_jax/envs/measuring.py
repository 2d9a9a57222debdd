"""Cost and health of an environment: reset, steps, forks and its expert."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Environment, EnvironmentFamily
from agentrm_jax.core.records import Split, Task, Transition
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.contract import listed_tasks, missing_of, reason_of

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of `check`.

    Attributes:
      name: Of the environment.
      ok: Whether it can be played.
      reason: The reason why not, in one line; empty if it can.
      reset_ms: Milliseconds of a reset, the median, as of the others.
      step_ms: Of an expert's action.
      fork_ms: Of a fork and an action in both, less the two actions: what is copied, or gone again.
      expert: Share of the tasks that the expert solves when its actions are played.
    """

    name: str
    ok: bool
    reason: str = ""
    reset_ms: float | None = None
    step_ms: float | None = None
    fork_ms: float | None = None
    expert: float | None = None


def check(
    family: EnvironmentFamily,
    n: int,
    split: Split = "train",
    on_task: Callable[[], None] = lambda: None,
) -> Check:
    """Plays the expert on n tasks and forks on the way; nothing is raised."""
    try:
        if reason := missing_of(family):
            return Check(name=family.name, ok=False, reason=reason)
        tasks = listed_tasks(family, split, n=n)
        if not tasks:
            return Check(name=family.name, ok=False, reason=f"split {split} has no task")
        return _check(family, tasks, on_task)
    except UserError as error:
        return Check(name=family.name, ok=False, reason=first_line(error, limit=1000))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the software underneath raises
        return Check(name=family.name, ok=False, reason=reason_of(error))


def _check(family: EnvironmentFamily, tasks: Sequence[Task], on_task: Callable[[], None]) -> Check:
    resets: list[float] = []
    steps: list[float] = []
    forks: list[float] = []
    wrong, solved = "", 0
    for number, task in enumerate(tasks):
        plan = family.demonstrate(task) or []
        environment = family.create()
        if number == 0:
            environment.reset(task)  # what is loaded once
        _, seconds = _timed(lambda task=task, new=environment: new.reset(task))
        resets.append(seconds)
        played = _play(environment, plan)
        steps += [seconds for _, seconds in played]
        solved += bool(played) and played[-1][0].success
        if plan:
            fork_seconds, difference = _fork_on_the_way(family, task, plan, played)
            forks += fork_seconds
            wrong = wrong or difference
        on_task()
    return Check(
        name=family.name,
        ok=not wrong,
        reason=wrong,
        reset_ms=_median_ms(resets),
        step_ms=_median_ms(steps),
        fork_ms=_median_ms(forks),
        expert=solved / len(tasks),
    )


def _play(
    environment: Environment, plan: Sequence[Demonstration]
) -> list[tuple[Transition, float]]:
    """The answers, and how long each took."""
    played: list[tuple[Transition, float]] = []
    for turn in plan:
        played.append(_timed(lambda action=turn.action: environment.step(action)))
        if played[-1][0].done:
            break
    return played


def _fork_on_the_way(
    family: EnvironmentFamily,
    task: Task,
    plan: Sequence[Demonstration],
    played: Sequence[tuple[Transition, float]],
) -> tuple[list[float], str]:
    """Forks at a moment drawn for the task, acts in the copy and continues in the original.

    Returns:
      Seconds that forks took, and what was wrong with them or "".
    """
    at = random.Random(task.task_id).randrange(len(played))
    environment = family.create()
    environment.reset(task)
    for turn in plan[:at]:
        environment.step(turn.action)
    expected, step_seconds = played[at]
    fork, seconds = _timed(environment.fork)
    answer, first = _timed(lambda: fork.step(plan[at].action))
    again, second = _timed(lambda: environment.step(plan[at].action))
    forks = [seconds + max(0.0, first + second - 2 * step_seconds)]
    if answer != expected:
        return forks, f"a fork of {task.task_id} answered otherwise: {answer.observation[:80]!r}"
    if again != expected:
        return forks, f"{task.task_id} was not independent of its fork"
    return forks, ""


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def _median_ms(seconds: Sequence[float]) -> float | None:
    return round(1000 * statistics.median(seconds), 4) if seconds else None
