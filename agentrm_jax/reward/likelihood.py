"""The policy's own likelihood as a score: the baseline that needs no reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentrm_jax.core.records import Trajectory


class LikelihoodScorer:
    """Scores a trajectory by the log-probability of its replies under the policy.

    It is the sum over all tokens, as in beam search of language models. A step without
    log-probabilities makes the score NaN, which no method takes for a decision.
    """

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns scores as `Scorer.score` does."""
        return [[_log_prob(trajectory) for trajectory in group] for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns 0: nothing is read."""
        del group
        return 0


def _log_prob(trajectory: Trajectory) -> float:
    if not all(step.log_probs for step in trajectory.steps):
        return math.nan
    return sum(sum(step.log_probs) for step in trajectory.steps)
