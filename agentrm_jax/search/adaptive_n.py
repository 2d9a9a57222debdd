"""Best-of-n with an n that adapts to the task: sampling stops when one more sample gains little."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from scipy.special import stdtr

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Proposal, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.search.methods import UNDECIDED
from agentrm_jax.search.rollouts import Rollout, RolloutSearch
from agentrm_jax.search.search_nodes import SearchNode, search_node
from agentrm_jax.search.thresholds import check_thresholds
from agentrm_jax.search.turns import run_turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveN:
    """The trajectory with the best score of n, where n depends on the scores.

    Samples `first` trajectories of a task, then `step` at a time, until the expected gain of one
    more sample (`expected_gain`) is below `cost` or there are `most`. This is the rule of optimal
    stopping with recall for boxes with one unknown distribution (Weitzman 1979; for language
    models arXiv 2510.01394), looking one sample ahead. Sample i is sample i of best-of-n.

    Samples whose environment failed, and those without a score (NaN), come last and do not enter
    the expected gain.

    Attributes:
      first: Trajectories before the first decision.
      step: Trajectories of each further round.
      most: Most trajectories of a task.
      cost: The expected gain below which sampling stops, in units of the scores; 0 always samples
        `most`. None: the calibrated value.
      prior_mean: Mean of the scores before any is seen.
      prior_deviation: Standard deviation of the scores before any is seen.
      prior_strength: Number of scores that the prior counts for, in mean and deviation.
      concurrency: Trajectories that run at the same time. It changes speed, never results.
    """

    scores_states: ClassVar[bool] = True
    thresholds: ClassVar[Mapping[str, tuple[float, ...]]] = {"cost": (0.0, 0.005, 0.01, 0.02, 0.05)}

    first: int = 2
    step: int = 1
    most: int = 16
    cost: float | None = None
    prior_mean: float = 0.5
    prior_deviation: float = 0.25
    prior_strength: float = 1.0
    concurrency: int = 64

    def __post_init__(self) -> None:
        check_fields(
            self,
            first="[1, 100000]",
            step="[1, 100000]",
            most="[1, 100000]",
            cost="[0, inf)",
            prior_deviation="(0, inf)",
            prior_strength="(0, inf)",
            concurrency="[1, 100000]",
        )
        if self.first > self.most:
            raise UserError(field="first", value=self.first, expected=f"at most most, {self.most}")

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the chosen trajectory of each task with the costs of all; see `Method.run`.

        Raises:
          UserError: `cost` has no value.
        """
        check_thresholds(self)
        assert self.cost is not None
        search = _AdaptiveSearch(scorer, envs, tasks, self, self.cost)
        return run_turns(policy, search, self.concurrency)


def expected_gain(
    scores: Sequence[float], *, prior_mean: float, prior_deviation: float, prior_strength: float
) -> float:
    """Returns how much the best score is expected to grow with one more sample.

    The scores are normal with unknown mean and variance. The prior is the conjugate one (normal for
    the mean, scaled inverse chi-squared for the variance), both with the strength s0. After k
    scores with the mean y and the sum of squares S around it, the next score has a Student
    distribution (Gelman et al., Bayesian Data Analysis, 3rd edition, section 3.3):

        strength  s = s0 + k                      (also its degrees of freedom)
        location  m = (s0 m0 + k y) / s
        scale     c, c^2 = (s0 d0^2 + S + s0 k / s (y - m0)^2) / s (1 + 1 / s)

    With b the best score so far, z = (m - b) / c, F and f the distribution function and the density
    of Student's t with s degrees of freedom (Tracey and Wolpert, arXiv 1801.06147):

        E[max(next - b, 0)] = (m - b) F(z) + c (s + z^2) / (s - 1) f(z)

    Args:
      scores: The scores so far.
      prior_mean: m0.
      prior_deviation: d0.
      prior_strength: s0.

    Returns:
      The expected gain, above 0; infinity without scores, because there is nothing to fall back on.
    """
    if not scores:
        return math.inf
    k, mean = len(scores), math.fsum(scores) / len(scores)
    strength = prior_strength + k
    location = (prior_strength * prior_mean + k * mean) / strength
    squares = prior_strength * prior_deviation**2 + math.fsum((y - mean) ** 2 for y in scores)
    squares += prior_strength * k / strength * (mean - prior_mean) ** 2
    scale = math.sqrt(squares / strength * (1 + 1 / strength))
    above = location - max(scores)
    z = above / scale
    log_density = (
        math.lgamma((strength + 1) / 2)
        - math.lgamma(strength / 2)
        - math.log(strength * math.pi) / 2
        - (strength + 1) / 2 * math.log1p(z * z / strength)
    )
    spread = scale * (strength + z * z) / (strength - 1) * math.exp(log_density)
    return max(above * float(stdtr(strength, z)) + spread, 0.0)


@dataclasses.dataclass(slots=True)
class _Samples:
    """The trajectories of one task.

    Attributes:
      asked: Number of trajectories that were begun or wait.
      rollouts: The rollouts that have ended, by sample number.
      scores: Their scores, NaN if undecided; none for those whose environment failed.
      began: The time at which the first of them began.
    """

    task: Task
    asked: int
    rollouts: dict[int, Rollout] = dataclasses.field(default_factory=dict)
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    began: float = math.inf

    @property
    def new(self) -> list[int]:
        """The samples that are to be scored."""
        return [
            sample
            for sample in sorted(self.rollouts)
            if sample not in self.scores and self.rollouts[sample].trajectory.done
        ]

    @property
    def decided(self) -> dict[int, float]:
        """The scores that are numbers, by sample number."""
        return {s: score for s, score in sorted(self.scores.items()) if not math.isnan(score)}

    def answer(self, scorer: Scorer) -> Rollout:
        """Returns the best trajectory, the first of equals, with the costs of all."""
        decided, rollouts = self.decided, [self.rollouts[s] for s in sorted(self.rollouts)]
        chosen = max(decided, key=decided.__getitem__, default=min(self.scores, default=0))
        best = self.rollouts[chosen]
        return dataclasses.replace(
            best,
            sample=0,
            policy_tokens=sum(rollout.policy_tokens for rollout in rollouts),
            truncated_steps=sum(rollout.truncated_steps for rollout in rollouts),
            env_steps=sum(rollout.env_steps for rollout in rollouts),
            failed_candidates=sum(rollout.failed_candidates for rollout in rollouts),
            reward_tokens=scorer.cost([self.rollouts[s].trajectory for s in sorted(self.scores)]),
            wall_seconds=time.monotonic() - self.began,
            error=UNDECIDED if self.scores and not decided else best.error,
            search=self._nodes(rollouts, chosen),
        )

    def _nodes(self, rollouts: Sequence[Rollout], chosen: int) -> tuple[SearchNode, ...]:
        """Returns a chain of nodes for each trajectory below one root."""
        begun = [r.trajectory.first_observation for r in rollouts if r.trajectory.first_observation]
        root = dataclasses.replace(rollouts[0].trajectory, steps=())
        root = dataclasses.replace(root, first_observation=begun[0] if begun else "")
        nodes = [search_node(root, -1, visits=len(rollouts), chosen=True)]
        for rollout in rollouts:
            parent, state = 0, root
            for step in rollout.trajectory.steps:
                state = state.extended(step)
                last = len(state.steps) == len(rollout.trajectory.steps)
                failed = last and not state.done
                nodes.append(
                    search_node(
                        state,
                        parent,
                        score=self.scores.get(rollout.sample, math.nan) if last else math.nan,
                        status="failed" if failed else "finished" if state.done else "kept",
                        chosen=rollout.sample == chosen,
                    )
                )
                parent = len(nodes) - 1
        return tuple(nodes)


class _AdaptiveSearch(RolloutSearch):
    """Rollouts to which each task adds samples as long as they are worth their cost."""

    def __init__(
        self,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        config: AdaptiveN,
        cost: float,
    ) -> None:
        super().__init__(pool, [(task, sample) for task in tasks for sample in range(config.first)])
        self._scorer, self._config, self._cost = scorer, config, cost
        self._tasks = {task.task_id: _Samples(task, config.first) for task in tasks}

    def begin(self, count: int) -> Iterator[Rollout]:
        yield from self._decide(super().begin(count))

    def play(self, answers: Sequence[tuple[Any, list[Proposal]]]) -> Iterator[Rollout]:
        yield from self._decide(super().play(answers))

    def _decide(self, ended: Iterable[Rollout]) -> Iterator[Rollout]:
        """Scores the tasks whose rounds have ended, in one call; begins a round or yields."""
        ready: list[_Samples] = []
        for rollout in ended:
            samples = self._tasks[rollout.trajectory.task.task_id]
            samples.rollouts[rollout.sample] = rollout
            samples.began = min(samples.began, time.monotonic() - rollout.wall_seconds)
            if len(samples.rollouts) == samples.asked:
                ready.append(samples)
        scored = [samples for samples in ready if samples.new]
        groups = [[each.rollouts[s].trajectory for s in each.new] for each in scored]
        scores = scores_of(self._scorer, groups) if groups else []
        for samples, own in zip(scored, scores, strict=True):
            samples.scores.update(zip(samples.new, own, strict=True))
        for samples in ready:
            if count := self._more(samples):
                self.add([(samples.task, samples.asked + i) for i in range(count)])
                samples.asked += count
            else:
                yield samples.answer(self._scorer)

    def _more(self, samples: _Samples) -> int:
        """Returns the number of samples of the next round, 0 if there is none."""
        config = self._config
        gain = expected_gain(
            list(samples.decided.values()),
            prior_mean=config.prior_mean,
            prior_deviation=config.prior_deviation,
            prior_strength=config.prior_strength,
        )
        return min(config.step, config.most - samples.asked) if gain >= self._cost else 0
