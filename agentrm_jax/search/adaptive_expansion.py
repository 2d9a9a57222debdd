"""Adaptive expansion: search only at the steps at which the policy's samples disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.search.live_search import LiveStateSearch
from agentrm_jax.search.live_states import TaskSearch, Turn, best_first
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.thresholds import check_thresholds
from agentrm_jax.search.turns import run_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveExpansion:
    """One live state that is searched from only if sampled turns disagree.

    Each step samples `num_samples` turns. If the most common action is at least the
    fraction `agreement` of them, it is taken without a score. Otherwise turns are sampled up to
    `expansion_width` in all, each distinct action acts in a copy of the environment, and the
    successor with the best score is kept.

    Source: arXiv 2602.12276, in which 40% of the steps have no disagreement.

    Attributes:
      num_samples: Turns sampled at every step.
      expansion_width: Turns sampled at a step with disagreement, those before included.
      agreement: Fraction of equal actions, in (0, 1], from which the action is taken without a
        search. With three samples, 0.5 asks for two and 1 for all. None is the value that
        `agentrm calibrate` chose.
      concurrency: Tasks searched at the same time. It changes speed, never results.
    """

    scores_states: ClassVar[bool] = True
    thresholds: ClassVar[Mapping[str, tuple[float, ...]]] = {"agreement": (0.5, 1.0)}

    num_samples: int = 3
    expansion_width: int = 5
    agreement: float | None = None
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_samples="[2, 10000]",
            expansion_width="[2, 10000]",
            agreement="(0, 1]",
            concurrency="[1, 100000]",
        )
        if self.expansion_width < self.num_samples:
            raise UserError(
                field="expansion_width",
                value=self.expansion_width,
                expected=f"at least num_samples, {self.num_samples}",
            )

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the trajectory of each task; see `Method.run`.

        Raises:
          UserError: `agreement` has no value.
        """
        check_thresholds(self)
        return run_steps(_AdaptiveSearch(policy, scorer, envs, tasks, self), self.concurrency)


class _AdaptiveSearch(LiveStateSearch):
    """Adaptive expansion as the turn loop drives it."""

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        method: AdaptiveExpansion,
    ) -> None:
        super().__init__(policy, scorer, pool, tasks)
        assert method.agreement is not None
        self._method, self._agreement = method, method.agreement

    def advance(self) -> None:
        turns = self._sampled()
        searching = {
            search
            for search, own in zip(self.running, turns, strict=True)
            if self._agreement_of(own) < self._agreement
        }
        turns = self._sampled_further(turns, searching)
        turns = [
            own if search in searching else [max(own, key=_votes)]
            for search, own in zip(self.running, turns, strict=True)
        ]
        moved = self.act(turns)
        self.score([(search, states) for search, states in moved if search in searching])
        for search, states in moved:
            self.release(search.settle(states, best_first(states)[:1]))

    def _sampled(self) -> list[list[Turn]]:
        """Returns the first turns of each search, equal actions once."""
        requests = [search.requests("adaptive", search.live) for search in self.running]
        return self.sample_merged(requests, self._method.num_samples)

    def _sampled_further(
        self, turns: Sequence[list[Turn]], searching: Collection[TaskSearch]
    ) -> list[list[Turn]]:
        """Returns the turns together with further ones of the searches whose turns disagree."""
        further = self._method.expansion_width - self._method.num_samples
        if not further:
            return list(turns)
        requests = [
            search.requests("adaptive/further", search.live if search in searching else [])
            for search in self.running
        ]
        return [
            self.merged(search, [*own, *more])
            for search, own, more in zip(
                self.running, turns, self.sample_merged(requests, further), strict=True
            )
        ]

    def _agreement_of(self, turns: Sequence[Turn]) -> float:
        """Returns the fraction of the first turns that have the most common action."""
        return max(map(_votes, turns)) / self._method.num_samples


def _votes(turn: Turn) -> int:
    """The number of samples with the action of a turn; turns that failed have no vote."""
    return turn.count if turn.proposal.failure is None else 0
