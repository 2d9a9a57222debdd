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
from agentrm_jax.search.environments import act_on_turns
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
class Episode:
    """A trajectory that is not finished, and its environment.

    Attributes:
      trajectory: The steps so far.
      sample: Its number among the trajectories of its task.
      handle: Its environment.
      began: When it was reset, in seconds of `time.monotonic`.
      attempt: How often the environment of its current turn has failed.
    """

    trajectory: Trajectory
    sample: int
    handle: int
    began: float
    policy_tokens: int = 0
    truncated_steps: int = 0
    attempt: int = 0
    failed_candidates: int = 0

    @property
    def purpose(self) -> str:
        """The purpose of its next turn; see `Policy.submit`."""
        again = f"/again/{self.attempt}" if self.attempt else ""
        return f"sample/{self.sample}/{len(self.trajectory.steps)}{again}"

    def finished(self, error: str | None = None) -> Rollout:
        """Returns its trajectory and costs.

        Args:
          error: The reason why its environment failed for good, or None.
        """
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


class RolloutSearch(TurnSearch[Episode, Rollout]):
    """Rollouts as the turn loop drives them.

    Args:
      pool: The environments.
      samples: Tasks and sample numbers, in the order in which they begin.
    """

    def __init__(self, pool: EnvironmentPool, samples: Sequence[tuple[Task, int]]) -> None:
        self._pool = pool
        self._waiting = list(reversed(samples))
        self._ready: list[Episode] = []
        self._running: set[Episode] = set()

    def add(self, samples: Sequence[tuple[Task, int]]) -> None:
        """Adds tasks with their sample numbers; they begin before the waiting tasks."""
        self._waiting += reversed(samples)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def begin(self, count: int) -> Iterator[Rollout]:
        entering = [self._waiting.pop() for _ in range(count)]
        for episode in begin_episodes(self._pool, entering):
            if isinstance(episode, Rollout):
                yield episode
            else:
                self._ready.append(episode)
                self._running.add(episode)

    def questions(self) -> list[tuple[Episode, Question]]:
        ready, self._ready = self._ready, []
        return [(e, Question(e.trajectory, e.purpose, 1)) for e in ready]

    def overlaps(self, player: Episode) -> bool:
        return self._pool.elsewhere(player.trajectory.task)

    def play(self, answers: Sequence[tuple[Episode, list[Proposal]]]) -> Iterator[Rollout]:
        turns = [(episode, proposal) for episode, [proposal] in answers]
        for (episode, _), rollout in zip(turns, play_turns(self._pool, turns), strict=True):
            if rollout is None:
                self._ready.append(episode)
            else:
                self._running.remove(episode)
                yield rollout

    def close(self) -> None:
        self._pool.release([episode.handle for episode in self._running])


def begin_episodes(
    pool: EnvironmentPool, samples: Sequence[tuple[Task, int]]
) -> list[Episode | Rollout]:
    """Resets an environment for each (task, sample number).

    Returns:
      For each its episode; a rollout with an error if the environment failed.
    """
    begun: list[Episode | Rollout] = []
    answers = pool.reset([task for task, _ in samples]) if samples else []
    for (task, sample), answer in zip(samples, answers, strict=True):
        now = time.monotonic()
        if isinstance(answer, EnvironmentFailure):
            nothing = Trajectory(task=task, first_observation="")
            begun.append(Episode(nothing, sample, -1, now).finished(answer.reason))
        else:
            handle, observation = answer
            trajectory = Trajectory(task=task, first_observation=observation)
            begun.append(Episode(trajectory, sample, handle, now))
    return begun


def play_turns(
    pool: EnvironmentPool, turns: Sequence[tuple[Episode, Proposal]]
) -> list[Rollout | None]:
    """Lets environments act on a proposed turn of each episode.

    If the environment of a turn fails, the episode is replayed, and the turn is to be sampled
    again, `ATTEMPTS` times in all; so is a turn that failed itself.

    Returns:
      For each episode its rollout if it ended by the turn, and its environment is then released;
      None if another turn is to be sampled.
    """
    acted = act_on_turns(pool, [(episode.handle, turn, False) for episode, turn in turns])
    ended: list[Rollout | None] = []
    for (episode, proposal), answer in zip(turns, acted, strict=True):
        episode.policy_tokens += proposal.tokens
        episode.truncated_steps += proposal.truncated_steps
        error = None
        if isinstance(answer, EnvironmentFailure):
            error = _again(pool, episode, answer, acted=proposal.failure is None)
        else:
            step = proposal.as_step(answer[1])
            episode.trajectory, episode.attempt = episode.trajectory.extended(step), 0
        if error is None and not episode.trajectory.done:
            ended.append(None)
        else:
            pool.release([episode.handle])
            ended.append(episode.finished(error))
    return ended


def _again(
    pool: EnvironmentPool, episode: Episode, failure: EnvironmentFailure, *, acted: bool
) -> str | None:
    """Counts a failure; replays the episode up to its last state if its environment failed.

    Args:
      acted: Whether the environment acted; if not, it is in its last state still.

    Returns:
      The reason why it ends here; None if another turn is to be sampled.
    """
    episode.failed_candidates += 1
    episode.attempt += 1
    if episode.attempt == ATTEMPTS:
        return failure.reason
    if not acted:
        return None
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
