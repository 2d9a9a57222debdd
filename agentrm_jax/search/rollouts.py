"""Whole trajectories, many at once: greedy agents, and the samples behind best-of-n."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

from agentrm_jax.core.proposals import AdmittedPolicy
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
    Question,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search.growing import as_step

ATTEMPTS = 3
"""How often a turn is sampled whose environment fails."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A finished trajectory and what it cost.

    Attributes:
      sample: Which of a task's trajectories it is.
      policy_tokens: Tokens decoded.
      truncated_steps: Oldest steps that did not fit into the context, added up over the turns.
      env_steps: Steps of the environment.
      failed_candidates: Turns whose environment failed; another one was sampled in their place.
      reward_tokens: Tokens that a reward model read on the way, for methods that score steps.
      wall_seconds: From its reset to its end, while others ran beside it.
      error: Why the environment gave up, if it did.
    """

    trajectory: Trajectory
    sample: int
    policy_tokens: int
    truncated_steps: int
    env_steps: int
    wall_seconds: float
    failed_candidates: int = 0
    reward_tokens: int = 0
    error: str | None = None

    @property
    def replies_without_action(self) -> int:
        return sum(not step.action for step in self.trajectory.steps)


@dataclasses.dataclass(slots=True)
class _Running:
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


def rollouts(
    policy: Policy, pool: EnvironmentPool, episodes: Sequence[tuple[Task, int]], *, slots: int = 64
) -> Iterator[Rollout]:
    """Runs one trajectory for each (task, sample number); yields them as they end.

    At most `slots` run at the same time: one that ends makes room for the next. A trajectory
    depends on its task and sample number, never on other rollouts. If the environment of a turn
    fails, the episode is played again up to there and another turn is sampled, `ATTEMPTS` in all.
    """
    policy = AdmittedPolicy(policy)
    waiting = list(reversed(episodes))
    running = 0
    ready: list[_Running] = []  # what the policy is still to be asked about
    asked: dict[int, _Running] = {}
    answered: list[tuple[_Running, Proposal]] = []

    def act(replies: Sequence[tuple[_Running, Proposal]]) -> Iterator[Rollout]:
        """Lets the environments act; gives what is over, the others are ready again."""
        nonlocal running
        answers = pool.step([(r.handle, p.action) for r, p in replies]) if replies else []
        for (r, proposal), answer in zip(replies, answers, strict=True):
            r.policy_tokens += len(proposal.log_probs)
            r.truncated_steps += proposal.dropped_steps
            failure = None
            if isinstance(answer, EnvironmentFailure):
                failure = _played_again(pool, r, answer)
            else:
                r.trajectory, r.attempt = r.trajectory.extended(as_step(proposal, answer)), 0
            if failure is None and not r.trajectory.done:
                ready.append(r)
                continue
            pool.release([r.handle])
            running -= 1
            yield r.finished(failure)

    while waiting or running:
        while answered and (room := policy.room() - len(ready)) > 0:
            acting, answered = answered[:room], answered[room:]
            yield from act(acting)
        questions = [r.question for r in ready]
        asked.update(zip(policy.submit(questions), ready, strict=True))
        ready = []
        # While the policy works on these, environments elsewhere act as it proposed for others; for
        # as many as fill its rows they have acted before.
        yield from act(answered)
        # Half of the slots at a time: two cohorts, of which one is decoded while the other acts.
        room = min(slots - running, -(-slots // 2), len(waiting))
        entering = [waiting.pop() for _ in range(room)]
        answers = pool.reset([task for task, _ in entering]) if entering else []
        for (task, sample), answer in zip(entering, answers, strict=True):
            now = time.monotonic()
            if isinstance(answer, EnvironmentFailure):
                nothing = Trajectory(task=task, first_observation="")
                yield _Running(nothing, sample, -1, now).finished(answer.reason)
                continue
            handle, observation = answer
            trajectory = Trajectory(task=task, first_observation=observation)
            ready.append(_Running(trajectory, sample, handle, now))
            running += 1
        replies = [(asked.pop(ticket), proposal) for ticket, [proposal] in policy.collect()]
        answered = [(r, p) for r, p in replies if pool.elsewhere(r.trajectory.task)]
        yield from act([(r, p) for r, p in replies if not pool.elsewhere(r.trajectory.task)])


def _played_again(pool: EnvironmentPool, r: _Running, failure: EnvironmentFailure) -> str | None:
    """Brings a trajectory whose environment failed back to its last state.

    Returns:
      Why it cannot go on; None if another turn is to be sampled there.
    """
    r.failed_candidates += 1
    r.attempt += 1
    if r.attempt == ATTEMPTS:
        return failure.reason
    pool.release([r.handle])
    [begun] = pool.reset([r.trajectory.task])
    if isinstance(begun, EnvironmentFailure):
        return begun.reason
    r.handle, observation = begun
    if observation != r.trajectory.first_observation:
        return f"{failure.reason}; the environment then began otherwise"
    for step in r.trajectory.steps:
        [answer] = pool.step([(r.handle, step.action)])
        if isinstance(answer, EnvironmentFailure):
            return answer.reason
        if answer != step.transition:
            return f"{failure.reason}; then a replayed step was answered otherwise than before"
    return None
