"""Best-of-n: sample n trajectories of each task and keep the one that the reward model prefers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from agentrm_jax.agent.function import PolicyFunction
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.reward.function import ScoreFunction, as_scorer
from agentrm_jax.search.choose import best
from agentrm_jax.search.rollouts import Rollout, rollouts
from agentrm_jax.search.tasks import checked_tasks


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BestOfN:
    """The n trajectories of one task, their scores and the choice among them.

    Attributes:
      task: The task.
      rollouts: n trajectories, by sample number.
      scores: The reward model's score of each; all NaN if it could not decide.
      chosen: Index of the trajectory with the best score, the first of equals; one whose
        environment failed is chosen only if all failed. None if the reward model could not decide.
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    scores: tuple[float, ...]
    chosen: int | None

    @property
    def rollout(self) -> Rollout | None:
        """The chosen trajectory and its cost, or None."""
        return None if self.chosen is None else self.rollouts[self.chosen]

    @property
    def trajectory(self) -> Trajectory | None:
        """The chosen trajectory, or None."""
        return None if self.chosen is None else self.rollouts[self.chosen].trajectory


def best_of_n(
    policy: Policy | PolicyFunction,
    scorer: Scorer | ScoreFunction,
    envs: EnvironmentPool,
    tasks: Sequence[Task],
    *,
    n: int = 5,
    seed: int = 0,
    concurrency: int = 64,
) -> list[BestOfN]:
    """Samples n trajectories of each task and chooses the one with the best score.

    Args:
      policy: A policy, or a function `(state, n, seed) -> texts`.
      scorer: A reward model, or a function `(states) -> scores`. It scores whole trajectories.
      envs: The environments.
      tasks: The tasks, each once.
      n: Trajectories of each task.
      seed: Seed of a policy function.
      concurrency: Trajectories that run at the same time. It changes speed, never results.

    Returns:
      One result for each task, in order.

    Raises:
      UserError: n or concurrency is below 1, a task is refused or there twice, or the policy or the
        scorer breaks its protocol.
    """
    tasks = checked_tasks(tasks)
    groups: dict[str, list[Rollout]] = {task.task_id: [] for task in tasks}
    for rollout in rollouts(policy, envs, tasks, n=n, seed=seed, concurrency=concurrency):
        groups[rollout.trajectory.task.task_id].append(rollout)
    ordered = [sorted(group, key=lambda rollout: rollout.sample) for group in groups.values()]
    return choose_best(ordered, scorer)


def choose_best(
    groups: Sequence[Sequence[Rollout]], scorer: Scorer | ScoreFunction
) -> list[BestOfN]:
    """Chooses the trajectory with the best score of each group.

    Args:
      groups: The rollouts of each task, at least one.
      scorer: A reward model, or a function `(states) -> scores`.

    Returns:
      One result for each group, in order.

    Raises:
      UserError: The scorer breaks its protocol.
    """
    trajectories = [[rollout.trajectory for rollout in group] for group in groups]
    results = []
    for group, states, scores in zip(
        groups, trajectories, scores_of(as_scorer(scorer), trajectories), strict=True
    ):
        chosen = int(np.argmax(best(states, scores))) if np.isfinite(scores).all() else None
        results.append(
            BestOfN(task=states[0].task, rollouts=tuple(group), scores=tuple(scores), chosen=chosen)
        )
    return results
