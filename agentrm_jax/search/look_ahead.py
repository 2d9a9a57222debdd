"""Beam search that scores a candidate by the state some steps further on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.protocols import EnvironmentFailure, EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.search.beam import BeamConfig, BeamSearch
from agentrm_jax.search.live_search import Moved
from agentrm_jax.search.live_states import Request, State
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.turns import run_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookAhead:
    """Beam search in which a candidate has the score of the state `depth` steps further on.

    After a candidate has acted, one turn after the other is sampled from it in a copy of its
    environment, up to `depth` turns or the end of the episode, and the state that is reached is
    scored. These turns only give the score: the candidate itself joins the beam. Their tokens and
    steps count. If an environment fails on the way, the last state before is scored. With depth 0
    this is beam search.

    Source: Snell et al., "Scaling LLM Test-Time Compute Optimally can be More Effective than
    Scaling Model Parameters", arXiv 2408.03314. There the turns have temperature 0; here they have
    that of the policy.

    Attributes:
      beam_width: States kept.
      expansion_width: Turns sampled from each.
      depth: Turns after each candidate, before it is scored.
      concurrency: Tasks searched at the same time. It changes speed, never results.
    """

    scores_states: ClassVar[bool] = True

    beam_width: int = 5
    expansion_width: int = 5
    depth: int = 1
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self,
            beam_width="[1, 10000]",
            expansion_width="[1, 10000]",
            depth="[0, 100000]",
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
        """Yields the best finished trajectory of each task; see `Method.run`."""
        search = _LookAheadSearch(policy, scorer, envs, tasks, self)
        return run_steps(search, self.concurrency)


class _LookAheadSearch(BeamSearch):
    """Beam search whose new states are scored by the end of a rollout."""

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        method: LookAhead,
    ) -> None:
        widths = BeamConfig(beam_width=method.beam_width, expansion_width=method.expansion_width)
        super().__init__(policy, scorer, pool, tasks, widths)
        self._depth = method.depth

    def scored_states(self, moved: Moved) -> list[list[State]]:
        """Returns the state at the end of the rollout of each new state."""
        ends = [list(states) for _, states in moved]
        going = [(i, c) for i, (_, states) in enumerate(moved) for c in range(len(states))]
        for number in range(self._depth):
            going = [(i, c) for i, c in going if not ends[i][c].trajectory.done]
            places = [(moved[i][0], ends[i][c], f"{c}/{number}") for i, c in going]
            arrived = []
            for (i, c), outcome in zip(going, self._turns(places, fork=number == 0), strict=True):
                if isinstance(outcome, State):
                    outcome.status, ends[i][c] = "removed", outcome
                    arrived.append((i, c))
            going = arrived
        for (_, states), own in zip(moved, ends, strict=True):
            copies = [end for state, end in zip(states, own, strict=True) if end is not state]
            self.release(copies)
        return ends

    def _turns(self, places: Sequence[Request], fork: bool) -> list[State | EnvironmentFailure]:
        """Samples a turn for each (search, state, name) and acts on it."""
        requests: list[Request] = [
            (search, state, f"look/{search.depth}/{name}") for search, state, name in places
        ]
        turns = [
            (search, turn)
            for (search, _, _), [turn] in zip(requests, self.sample(requests, 1), strict=True)
        ]
        return self.attempt_turns(turns, fork)
