"""Sequential Monte Carlo (SMC): particles that are resampled by the growth of their values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.core.seeds import seeded_bytes
from agentrm_jax.search.live_search import LiveStateSearch
from agentrm_jax.search.live_states import UNSCORED, Request, State, TaskSearch
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.thresholds import check_thresholds
from agentrm_jax.search.turns import run_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SMC:
    """Sequential Monte Carlo over trajectories, guided by the reward model.

    `num_particles` trajectories run side by side. After each step the weight of a particle is
    multiplied by exp((V_t - V_(t-1)) / tau), where V is the reward model's score. When the
    effective sample size, (sum w)^2 / sum w^2, falls below `resample_below` x `num_particles`, the
    particles are drawn again in proportion to their weights (systematic resampling): several
    particles may continue one state, each in a copy of its environment, and weights are equal
    again. A finished particle keeps its weight and is drawn like the others. The answer is the
    finished state with the best score, also if later draws left it out.

    The environment's rewards are never used. All particles begin at the root, so that its value
    has no effect; it counts as the mean of the first scores. A particle on whose state the reward
    model does not decide keeps its last value. Particles with equal actions in one state have one
    next state. If an environment fails, its particles are lost until the next draw.

    Sources: arXiv 2606.05296 (agents), 2502.01618 (reasoning).

    Attributes:
      num_particles: Particles of a task.
      resample_below: Fraction of `num_particles`, in [0, 1], below which the effective sample size
        leads to a draw. 0 never draws: best-of-n.
      weight_temperature: tau, in units of the score. Small values draw like greedy search, large
        ones like independent samples. None is the value that `agentrm calibrate` chose.
      concurrency: Tasks searched at the same time. It changes speed, never results.
    """

    scores_states: ClassVar[bool] = True
    thresholds: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "weight_temperature": (0.03, 0.1, 0.3, 1.0)
    }

    num_particles: int = 8
    resample_below: float = 0.5
    weight_temperature: float | None = 0.1
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_particles="[1, 10000]",
            resample_below="[0, 1]",
            weight_temperature="[1e-06, 1000000]",
            concurrency="[1, 100000]",
        )

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the best finished trajectory of each task; see `Method.run`.

        Raises:
          UserError: `weight_temperature` has no value.
        """
        check_thresholds(self)
        search = _ParticleSearch(policy, scorer, envs, tasks, self, seed)
        return run_steps(search, self.concurrency)


def effective_sample_size(log_weights: Sequence[float], counts: Sequence[int]) -> float:
    """Returns (sum w)^2 / sum w^2 over particles.

    Args:
      log_weights: Logarithm of the weight of each particle in a group.
      counts: Particles of each group.
    """
    weights = _weights(log_weights)
    total = sum(count * weight for count, weight in zip(counts, weights, strict=True))
    squares = sum(count * weight**2 for count, weight in zip(counts, weights, strict=True))
    return total**2 / squares


def systematic_counts(weights: Sequence[float], num_particles: int, offset: float) -> list[int]:
    """Returns how often each group is drawn by systematic resampling.

    Args:
      weights: Weight of each group, not necessarily summing to 1.
      num_particles: Particles to draw.
      offset: A random number in [0, 1), the same for all draws.

    Returns:
      A count for each group, summing to `num_particles`: the number of points
      (k + offset) / num_particles inside of its part of [0, 1).
    """
    ends = np.cumsum(weights) / np.sum(weights)
    points = (np.arange(num_particles) + offset) / num_particles
    last = np.flatnonzero(weights)[-1]  # the largest point may be rounded up to 1
    groups = np.minimum(np.searchsorted(ends, points, side="right"), last)
    return np.bincount(groups, minlength=len(weights)).tolist()


def _weights(log_weights: Sequence[float]) -> list[float]:
    """Returns weights of which the largest is 1."""
    largest = max(log_weights)
    return [math.exp(log_weight - largest) for log_weight in log_weights]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """The particles in one state. They have one history, and so one weight.

    Attributes:
      state: The state.
      count: Number of particles.
      value: The last score on which the reward model decided; None if there was none.
      log_weight: Logarithm of the weight of each particle.
    """

    state: State
    count: int
    value: float | None = None
    log_weight: float = 0.0


class _ParticleSearch(LiveStateSearch):
    """SMC as the turn loop drives it."""

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        method: SMC,
        seed: int,
    ) -> None:
        super().__init__(policy, scorer, pool, tasks)
        assert method.weight_temperature is not None
        self._method, self._tau, self._seed = method, method.weight_temperature, seed
        self._groups: dict[TaskSearch, list[_Group]] = {}
        self._root_values: dict[TaskSearch, float] = {}

    def advance(self) -> None:
        for search in self.running:
            if search not in self._groups:
                [root] = search.live
                root.visits = self._method.num_particles
                self._groups[search] = [_Group(state=root, count=root.visits)]
        moved = self.act(self.sample_merged(list(map(self._requests, self.running)), 1))
        self.score(moved)
        for search, states in moved:
            search.settle(states, states)
            groups = self._successors(search, states)
            if search.live:
                groups = self._resampled(search, groups)
            self._groups[search] = groups
        for search in self.running:
            if not search.live:
                del self._groups[search]
                self._root_values.pop(search, None)

    def _requests(self, search: TaskSearch) -> list[Request]:
        """Returns one request for each particle that is not finished."""
        live = [group for group in self._groups[search] if not group.state.trajectory.done]
        return search.requests("smc", [g.state for g in live for _ in range(g.count)])

    def _successors(self, search: TaskSearch, states: Sequence[State]) -> list[_Group]:
        """Returns the finished particles and those in the new states, with new weights."""
        before = {group.state.index: group for group in self._groups[search]}
        decided = [state.score for state in states if state.score != UNSCORED]
        if decided:
            self._root_values.setdefault(search, sum(decided) / len(decided))
        groups = [group for group in self._groups[search] if group.state.trajectory.done]
        for state in states:
            parent = before[state.parent]
            value, log_weight = parent.value, parent.log_weight
            if state.score != UNSCORED:
                previous = self._root_values[search] if value is None else value
                value = state.score
                log_weight += (value - previous) / self._tau
            groups.append(
                _Group(state=state, count=state.visits, value=value, log_weight=log_weight)
            )
        return groups

    def _resampled(self, search: TaskSearch, groups: list[_Group]) -> list[_Group]:
        """Draws the particles again if few of them have most of the weight."""
        num_particles = self._method.num_particles
        log_weights = [group.log_weight for group in groups]
        counts = [group.count for group in groups]
        size = effective_sample_size(log_weights, counts)
        if size >= self._method.resample_below * num_particles:
            return groups
        weights = [c * w for c, w in zip(counts, _weights(log_weights), strict=True)]
        name = f"smc/resample/{search.depth}"
        key = int.from_bytes(seeded_bytes(self._seed, search.task.task_id, name), "big")
        drawn = systematic_counts(weights, num_particles, np.random.default_rng(key).random())
        kept = []
        for group, count in zip(groups, drawn, strict=True):
            if count:
                group.state.visits = count
                kept.append(dataclasses.replace(group, count=count, log_weight=0.0))
        stay = {group.state for group in kept}
        removed = [state for state in search.live if state not in stay]
        for state in removed:
            state.status = "removed"
        self.release(removed)
        search.live = [state for state in search.live if state in stay]
        return kept
