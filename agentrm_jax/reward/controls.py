"""Scores that need no reward model: what every reward model is compared with."""

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


class FewestInvalidScorer:
    """Scores a trajectory by how few of its actions were refused, equal ones by likelihood.

    A reward model that chooses no better has learned to read the environment's refusals. A step
    without log-probabilities makes the score NaN, which no method takes for a decision.
    """

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns scores as `Scorer.score` does."""
        return [[validity(trajectory) for trajectory in group] for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns 0: nothing is read."""
        del group
        return 0


def validity(trajectory: Trajectory) -> float:
    """Returns a number that is larger with fewer invalid actions, then with likelier replies.

    An action that is not answered yet counts as valid. NaN if a step has no log-probabilities.
    """
    if not trajectory.has_log_probs:
        return math.nan
    likelihood = 1 / (1 - min(trajectory.log_prob, 0.0))  # within (0, 1], in the order of log_prob
    return likelihood - trajectory.invalid_actions


def _log_prob(trajectory: Trajectory) -> float:
    return trajectory.log_prob if trajectory.has_log_probs else math.nan
