"""Diverse verifier tree search (DVTS): subtrees that do not compete with each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.search.live_search import LiveStateSearch
from agentrm_jax.search.live_states import State, TaskSearch, best_first
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.turns import run_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class DVTS:
    """Diverse verifier tree search: a greedy search in each of several subtrees.

    The first step samples `num_subtrees` x `expansion_width` turns from the root; the best
    `num_subtrees` of the distinct actions begin a subtree each. In every later step a subtree
    samples `expansion_width` turns and keeps the best one. The answer is the finished state with
    the best score. In beam search one subtree can displace all others; here it cannot.

    Source: Beeching, Tunstall and Rush, "Scaling test-time compute with open models", 2024.

    Attributes:
      num_subtrees: Subtrees of a task. There are fewer if the first step has fewer distinct
        actions.
      expansion_width: Turns sampled in each subtree, and for each subtree in the first step.
      concurrency: Tasks searched at the same time. It changes speed, never results.
    """

    scores_states: ClassVar[bool] = True

    num_subtrees: int = 5
    expansion_width: int = 5
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self, num_subtrees="[1, 10000]", expansion_width="[1, 10000]", concurrency="[1, 100000]"
        )

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the best finished trajectory of each task; see `Method.run`."""
        return run_steps(_Subtrees(policy, scorer, envs, tasks, self), self.concurrency)


class _Subtrees(LiveStateSearch):
    """DVTS as the turn loop drives it: each live state is the end of a subtree."""

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        method: DVTS,
    ) -> None:
        super().__init__(policy, scorer, pool, tasks)
        self._method = method

    def advance(self) -> None:
        num_subtrees = self._method.num_subtrees
        requests = [
            search.requests("dvts", search.live if search.depth else search.live * num_subtrees)
            for search in self.running
        ]
        moved = self.act(self.sample_merged(requests, self._method.expansion_width))
        self.score(moved)
        for search, states in moved:
            self.release(search.settle(states, self._kept(search, states)))

    def _kept(self, search: TaskSearch, states: Sequence[State]) -> list[State]:
        """Returns the best state of each subtree, the subtrees in their order."""
        if search.depth == 1:  # each first action begins a subtree
            return best_first(states)[: self._method.num_subtrees]
        best: dict[int, State] = {}
        for state in states:  # in the order of their parents, so that subtrees keep theirs
            if state.parent not in best or state.score > best[state.parent].score:
                best[state.parent] = state
        return list(best.values())
