"""Expert trajectories: an environment's expert is asked, and its actions are played."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, EnvironmentFailure, EnvironmentPool
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.core.text import admit_text
from agentrm_jax.envs.contract import blaming
from agentrm_jax.envs.registry import load_family

_TOGETHER = 256  # episodes that are open at the same time


class _Turn(NamedTuple):
    """A turn to play, and whether it is a mistake."""

    turn: Demonstration
    mistake: bool = False


class _Plan(NamedTuple):
    """A task and the turns to play."""

    task: Task
    turns: tuple[_Turn, ...]

    def without(self, left_out: Callable[[int, _Turn], bool]) -> _Plan:
        kept = (each for i, each in enumerate(self.turns) if not left_out(i, each))
        return _Plan(self.task, tuple(kept))


def expert_trajectories(
    pool: EnvironmentPool,
    tasks: Sequence[Task],
    on_task: Callable[[], None] = lambda: None,
    *,
    mistakes: float = 0.0,
) -> Iterator[Trajectory]:
    """The successful expert trajectories of the tasks, in their order.

    A task is left out if the expert finds no way, if its actions do not succeed when they are
    played, or if its environment fails.

    Args:
      pool: The environments.
      tasks: The tasks.
      on_task: Called after each task that the expert was asked for.
      mistakes: Probability of a mistake before each step, and after each mistake: the agent does
        what the expert does at another time. Mistakes that the environment does not refuse are
        undone: the task is played again without them.

    Raises:
      UserError: An expert raises, or environments failed and no trajectory is left.
    """
    failures: list[str] = []
    count = 0
    for first in range(0, len(tasks), _TOGETHER):
        plans = list(_plans(tasks[first : first + _TOGETHER], on_task, mistakes))
        for trajectory in _successful(pool, plans, failures):
            count += 1
            yield trajectory
    if failures and not count:
        raise UserError(f"experts: no trajectory is left; the first failure: {failures[0]}")


def _plans(tasks: Iterable[Task], on_task: Callable[[], None], mistakes: float) -> Iterator[_Plan]:
    for task in tasks:
        with blaming(f"environment {task.environment!r}, task {task.task_id!r}: demonstrate"):
            turns = load_family(task.environment).demonstrate(task) or []
            demonstrations = [_admitted(turn) for turn in turns[: task.max_steps]]
        if demonstrations:
            yield _Plan(task, tuple(_with_mistakes(task, demonstrations, mistakes)))
        on_task()


def _with_mistakes(
    task: Task, demonstrations: Sequence[Demonstration], mistakes: float
) -> Iterator[_Turn]:
    """The turns of an expert with mistakes between them, as many as the step limit allows."""
    rng = random.Random(task.task_id)
    room = task.max_steps - len(demonstrations)
    for turn in demonstrations:
        others = [each for each in demonstrations if each.action != turn.action]
        while others and room and rng.random() < mistakes:
            yield _Turn(rng.choice(others), mistake=True)
            room -= 1
        yield _Turn(turn)


def _successful(
    pool: EnvironmentPool, plans: Sequence[_Plan], failures: list[str]
) -> Iterator[Trajectory]:
    """The trajectories of plans that succeed, without the mistakes that are not refused."""
    successful: dict[int, Trajectory] = {}
    left = dict(enumerate(plans))
    while left:
        again: dict[int, _Plan] = {}
        for i, trajectory in _played(pool, left, failures).items():
            plan = left[i]
            turns = zip(plan.turns, trajectory.steps, strict=False)  # an episode may end early
            accepted = (n for n, (t, s) in enumerate(turns) if t.mistake and s.transition.valid)
            if (first := next(accepted, None)) is not None:
                again[i] = plan.without(lambda n, _, first=first: n == first)
            elif trajectory.success:
                successful[i] = trajectory
            elif any(turn.mistake for turn in plan.turns):
                again[i] = plan.without(lambda _, turn: turn.mistake)
        left = again
    yield from (successful[i] for i in sorted(successful))


def _admitted(turn: Demonstration) -> Demonstration:
    """A turn of a stranger's expert with valid texts."""
    return Demonstration(thought=admit_text(turn.thought), action=admit_text(turn.action))


def _played(
    pool: EnvironmentPool, plans: Mapping[int, _Plan], failures: list[str]
) -> dict[int, Trajectory]:
    """Plays all plans side by side, one step of each at a time; notes why environments failed."""
    handles: dict[int, int] = {}
    trajectories: dict[int, Trajectory] = {}
    answers = pool.reset([plan.task for plan in plans.values()])
    for (i, plan), answer in zip(plans.items(), answers, strict=True):
        if isinstance(answer, EnvironmentFailure):
            failures.append(answer.reason)
            continue
        handles[i] = answer[0]
        trajectories[i] = Trajectory(task=plan.task, first_observation=answer[1])
    playing = list(handles)
    depth = 0
    while playing:
        turns = {i: plans[i].turns[depth].turn for i in playing if depth < len(plans[i].turns)}
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
    return trajectories
