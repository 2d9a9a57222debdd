"""Whole trajectories, many at once: the greedy agent, and the samples for best-of-n."""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Iterator, Sequence

from agentrm_jax.agent.function import PolicyFunction, as_policy
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
    Question,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search.environments import act
from agentrm_jax.search.search_nodes import SearchNode
from agentrm_jax.search.tasks import check_task, listed
from agentrm_jax.search.turns import ATTEMPTS, TurnSearch, run_turns


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A finished trajectory and its cost.

    Attributes:
      trajectory: The trajectory.
      sample: Its number among the trajectories of its task.
      policy_tokens: Tokens decoded.
      truncated_steps: Steps that did not fit into the context, summed over the turns.
      env_steps: Steps of the environment.
      wall_seconds: Seconds from its reset to its end, while others ran at the same time.
      failed_candidates: Turns whose environment failed; another one was sampled in their place.
      reward_tokens: Tokens that a reward model read during the search, if the method scores steps.
      error: The reason why the environment failed for good, or None.
      search: The nodes of the search that found it, for methods that search; empty otherwise.
    """

    trajectory: Trajectory
    sample: int = 0
    policy_tokens: int = 0
    truncated_steps: int = 0
    env_steps: int = 0
    wall_seconds: float = 0.0
    failed_candidates: int = 0
    reward_tokens: int = 0
    error: str | None = None
    search: tuple[SearchNode, ...] = ()

    @property
    def replies_without_action(self) -> int:
        """Number of steps whose reply has no action."""
        return sum(not step.action for step in self.trajectory.steps)


def rollouts(
    policy: Policy | PolicyFunction,
    envs: EnvironmentPool,
    tasks: Sequence[Task] | Sequence[tuple[Task, int]],
    *,
    n: int = 1,
    seed: int = 0,
    concurrency: int = 64,
) -> Iterator[Rollout]:
    """Runs n trajectories of each task to their end; yields each as it ends.

    A trajectory depends on the policy, its task and its sample number alone, never on other
    trajectories. If the environment of a turn fails, the episode is replayed up to there and
    another turn is sampled, three times in all.

    Args:
      policy: A policy, or a function `(state, n, seed) -> texts`.
      envs: The environments.
      tasks: The tasks; or pairs (task, sample number), to run those samples only.
      n: Trajectories of each task, numbered from 0; only if `tasks` holds tasks, not pairs.
      seed: Seed of a policy function.
      concurrency: Trajectories that run at the same time. It changes speed, never results.

    Yields:
      A rollout for each trajectory, as it ends.

    Raises:
      UserError: n or concurrency is below 1, n is given together with pairs, a task is refused, or
        the policy breaks its protocol.
    """
    for name, value in (("n", n), ("concurrency", concurrency)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise UserError(f"{name} must be at least 1 (got {value!r})")
    tasks = listed(tasks)
    if n != 1 and not all(isinstance(item, Task) for item in tasks):
        raise UserError(f"n must be 1 if tasks are given with their sample numbers (got {n})")
    samples = [
        item if isinstance(item, tuple) else (item, sample)
        for item in listed(tasks)
        for sample in range(1 if isinstance(item, tuple) else n)
    ]
    for task, _ in samples:
        check_task(task)
    return run_turns(as_policy(policy, seed), RolloutSearch(envs, samples), concurrency)


@dataclasses.dataclass(slots=True, eq=False)
class _Episode:
    """A trajectory that is not finished; `attempt` counts the failures of its current turn."""

    trajectory: Trajectory
    sample: int
    handle: int
    began: float
    policy_tokens: int = 0
    truncated_steps: int = 0
    attempt: int = 0
    failed_candidates: int = 0

    @property
    def question(self) -> Question:
        purpose = f"sample/{self.sample}/{len(self.trajectory.steps)}"
        if self.attempt:
            purpose += f"/again/{self.attempt}"
        return Question(self.trajectory, purpose, 1)

    def finished(self, error: str | None = None) -> Rollout:
        return Rollout(
            trajectory=self.trajectory,
            sample=self.sample,
            policy_tokens=self.policy_tokens,
            truncated_steps=self.truncated_steps,
            env_steps=len(self.trajectory.steps),
            failed_candidates=self.failed_candidates,
            wall_seconds=time.monotonic() - self.began,
            error=error,
        )


class RolloutSearch(TurnSearch[_Episode, Rollout]):
    """Rollouts as the turn loop drives them.

    Args:
      pool: The environments.
      samples: Tasks and sample numbers, in the order in which they begin.
    """

    def __init__(self, pool: EnvironmentPool, samples: Sequence[tuple[Task, int]]) -> None:
        self._pool = pool
        self._waiting = list(reversed(samples))
        self._ready: list[_Episode] = []
        self._running: set[_Episode] = set()

    def add(self, samples: Sequence[tuple[Task, int]]) -> None:
        """Adds tasks with their sample numbers; they begin before those that wait."""
        self._waiting += reversed(samples)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def begin(self, count: int) -> Iterator[Rollout]:
        entering = [self._waiting.pop() for _ in range(count)]
        answers = self._pool.reset([task for task, _ in entering]) if entering else []
        for (task, sample), answer in zip(entering, answers, strict=True):
            now = time.monotonic()
            if isinstance(answer, EnvironmentFailure):
                nothing = Trajectory(task=task, first_observation="")
                yield _Episode(nothing, sample, -1, now).finished(answer.reason)
                continue
            handle, observation = answer
            trajectory = Trajectory(task=task, first_observation=observation)
            episode = _Episode(trajectory, sample, handle, now)
            self._ready.append(episode)
            self._running.add(episode)

    def questions(self) -> list[tuple[_Episode, Question]]:
        ready, self._ready = self._ready, []
        return [(episode, episode.question) for episode in ready]

    def overlaps(self, player: _Episode) -> bool:
        return self._pool.elsewhere(player.trajectory.task)

    def play(self, answers: Sequence[tuple[_Episode, list[Proposal]]]) -> Iterator[Rollout]:
        turns = [(episode, proposal) for episode, [proposal] in answers]
        acted = act(self._pool, [(e.handle, proposal.action, False) for e, proposal in turns])
        for (episode, proposal), answer in zip(turns, acted, strict=True):
            episode.policy_tokens += len(proposal.log_probs)
            episode.truncated_steps += proposal.truncated_steps
            error = None
            if isinstance(answer, EnvironmentFailure):
                error = _replayed(self._pool, episode, answer)
            else:
                step = proposal.as_step(answer[1])
                episode.trajectory, episode.attempt = episode.trajectory.extended(step), 0
            if error is None and not episode.trajectory.done:
                self._ready.append(episode)
                continue
            self._pool.release([episode.handle])
            self._running.remove(episode)
            yield episode.finished(error)

    def close(self) -> None:
        self._pool.release([episode.handle for episode in self._running])


def _replayed(pool: EnvironmentPool, episode: _Episode, failure: EnvironmentFailure) -> str | None:
    """Replays an episode whose environment failed, up to its last state.

    Returns:
      The reason why it ends here; None if another turn is to be sampled.
    """
    episode.failed_candidates += 1
    episode.attempt += 1
    if episode.attempt == ATTEMPTS:
        return failure.reason
    pool.release([episode.handle])
    [begun] = pool.reset([episode.trajectory.task])
    if isinstance(begun, EnvironmentFailure):
        return begun.reason
    episode.handle, observation = begun
    if observation != episode.trajectory.first_observation:
        return f"{failure.reason}; the environment then began otherwise"
    for step in episode.trajectory.steps:
        [answer] = pool.step([(episode.handle, step.action)])
        if isinstance(answer, EnvironmentFailure):
            return answer.reason
        if answer != step.transition:
            return f"{failure.reason}; then a replayed step was answered otherwise than before"
    return None
