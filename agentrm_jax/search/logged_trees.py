"""Trees of logged trajectories: equal beginnings are one state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Trajectory
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import BackupRecord, IterationRecord, NodeRecord, TreeRecord


def trees_of_trajectories(trajectories: Iterable[Trajectory]) -> list[TreeRecord]:
    """Returns logged trajectories as trees, as if a search had found them.

    Trajectories of one problem with the same first observation share a tree. States with the same
    replies and observations are one node of it, whose visits are the trajectories that pass it.

    Args:
      trajectories: Trajectories whose rewards sum to an outcome in [0, 1].

    Returns:
      The trees, in the order in which their first trajectories come.

    Raises:
      UserError: An outcome is not within 0 and 1.
    """
    groups: dict[tuple[str, str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        task, outcome = trajectory.task, trajectory.outcome
        if not -1e-6 <= outcome <= 1 + 1e-6:
            raise UserError(
                f"task {printable(task.task_id)}: the rewards of a trajectory must sum "
                f"to an outcome within 0 and 1 (got {outcome:.6g})"
            )
        key = (task.environment, task.problem, trajectory.first_observation)
        groups.setdefault(key, []).append(trajectory)
    return [_tree(group) for group in groups.values()]


def _tree(group: Sequence[Trajectory]) -> TreeRecord:
    numbers: dict[tuple[int, str, str], int] = {}
    parents: list[int] = []
    steps: list[Step] = []
    visits: list[int] = []
    backups = []
    for trajectory in group:
        path = [0]
        for step in trajectory.steps:
            key = (path[-1], step.reply, step.transition.observation)
            if (number := numbers.get(key)) is None:
                number = numbers[key] = len(steps) + 1
                parents.append(path[-1])
                steps.append(step)
                visits.append(0)
            elif steps[number - 1].transition.done and not step.transition.done:
                steps[number - 1] = step  # another trajectory has steps after it
            visits[number - 1] += 1
            path.append(number)
        backups.append(BackupRecord(path=tuple(path), outcome=trajectory.outcome))
    first, *further = backups
    whole = IterationRecord(
        task_id=group[0].task.task_id,
        iteration=0,
        nodes=tuple(
            NodeRecord(node=number, parent=parent, step=step, multiplicity=count)
            for number, (parent, step, count) in enumerate(
                zip(parents, steps, visits, strict=True), start=1
            )
        ),
        path=first.path,
        outcome=first.outcome,
        further=tuple(further),
    )
    task = dataclasses.replace(
        group[0].task, max_steps=max(trajectory.task.max_steps for trajectory in group)
    )
    return TreeRecord(
        task=task,
        first_observation=group[0].first_observation,
        iterations=(whole,),
        finished=True,
    )
