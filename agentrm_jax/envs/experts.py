"""Expert trajectories: an environment's expert is asked, and its actions are played."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, EnvironmentFailure, EnvironmentPool
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.core.text import admit_text
from agentrm_jax.envs.contract import blaming
from agentrm_jax.envs.registry import load_family

_TOGETHER = 256  # episodes that are open at the same time


def expert_trajectories(
    pool: EnvironmentPool, tasks: Sequence[Task], on_task: Callable[[], None] = lambda: None
) -> Iterator[Trajectory]:
    """The successful expert trajectories of the tasks, in their order.

    A task is left out if the expert finds no way, if its actions do not succeed when they are
    played, or if its environment fails.

    Raises:
      UserError: An expert raises, or environments failed and no trajectory is left.
    """
    failures: list[str] = []
    count = 0
    for first in range(0, len(tasks), _TOGETHER):
        planned = _demonstrations(tasks[first : first + _TOGETHER], on_task)
        for trajectory in _played(pool, planned, failures):
            count += 1
            yield trajectory
    if failures and not count:
        raise UserError(f"experts: no trajectory is left; the first failure: {failures[0]}")


def _demonstrations(
    tasks: Iterable[Task], on_task: Callable[[], None]
) -> list[tuple[Task, list[Demonstration]]]:
    found = []
    for task in tasks:
        with blaming(f"environment {task.environment!r}, task {task.task_id!r}: demonstrate"):
            turns = load_family(task.environment).demonstrate(task) or []
            demonstrations = [_admitted(turn) for turn in turns[: task.max_steps]]
        if demonstrations:
            found.append((task, demonstrations))
        on_task()
    return found


def _admitted(turn: Demonstration) -> Demonstration:
    """A turn of a stranger's expert with valid texts."""
    return Demonstration(thought=admit_text(turn.thought), action=admit_text(turn.action))


def _played(
    pool: EnvironmentPool, planned: Sequence[tuple[Task, list[Demonstration]]], failures: list[str]
) -> Iterator[Trajectory]:
    """Plays all plans side by side, one step of each at a time; notes why environments failed."""
    handles: dict[int, int] = {}
    trajectories: dict[int, Trajectory] = {}
    for i, answer in enumerate(pool.reset([task for task, _ in planned])):
        if isinstance(answer, EnvironmentFailure):
            failures.append(answer.reason)
            continue
        handles[i] = answer[0]
        trajectories[i] = Trajectory(task=planned[i][0], first_observation=answer[1])
    playing = list(handles)
    depth = 0
    while playing:
        turns = {i: planned[i][1][depth] for i in playing if depth < len(planned[i][1])}
        answers = pool.step([(handles[i], turn.action) for i, turn in turns.items()])
        playing = []
        for (i, turn), answer in zip(turns.items(), answers, strict=True):
            if isinstance(answer, EnvironmentFailure):
                failures.append(answer.reason)
                continue
            step = Step(reply=turn.reply, action=turn.action, transition=answer)
            trajectories[i] = trajectories[i].extended(step)
            if not answer.done:
                playing.append(i)
        depth += 1
    pool.release(list(handles.values()))
    yield from (t for t in trajectories.values() if t.success)
