"""Rules that choose among n trajectories of one task: best-of-n and its baselines.

A rule returns one weight for each trajectory, summing to 1, so that its expected outcome is exact
and needs no further sampling. All rules choose among the same n trajectories.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.reward.controls import validity


class NotAvailable(UserError):
    """A rule needs something that the trajectories lack.

    Args:
      needs: What the rule needs, and why it is missing.
    """

    def __init__(self, needs: str) -> None:
        super().__init__(f"not available: {needs}")


def argmax_weights(scores: Sequence[float]) -> np.ndarray:
    """Returns all weight on the largest score, the first of equals: [n]."""
    weights = np.zeros(len(scores))
    weights[int(np.argmax(scores))] = 1.0
    return weights


def best(trajectories: Sequence[Trajectory], scores: Sequence[float]) -> np.ndarray:
    """Returns all weight on the best trajectory of those that ended, if any did: [n]."""
    return argmax_weights(_ended(trajectories, scores))


def best_of_fewer(trajectories: Sequence[Trajectory], scores: Sequence[float]) -> np.ndarray:
    """Returns the weights of `best` if only k of the n trajectories were sampled, for every k.

    Returns:
      [n, n]: row k - 1 holds the probability of each trajectory to be the best of k, over all ways
      to draw k of the n.
    """
    n = len(trajectories)
    order = np.argsort(-np.array(_ended(trajectories, scores)), kind="stable")
    weights = np.zeros((n, n))
    for k in range(1, n + 1):
        for place, i in enumerate(order):  # the others of the k are drawn from those after it
            weights[k - 1, i] = math.comb(n - 1 - place, k - 1) / math.comb(n, k)
    return weights


def _ended(trajectories: Sequence[Trajectory], scores: Sequence[float]) -> list[float]:
    return [s if t.done else -np.inf for t, s in zip(trajectories, scores, strict=True)]


def random_of_n(trajectories: Sequence[Trajectory]) -> np.ndarray:
    return np.full(len(trajectories), 1.0 / len(trajectories))


def majority_of_n(
    trajectories: Sequence[Trajectory],
    action_key: Callable[[Task, str], str] = lambda task, action: action.strip(),
) -> np.ndarray:
    """Returns all weight on the trajectory whose actions are most similar to the others': [n].

    With repeated action sequences this is the vote of self-consistency. Long agent trajectories
    seldom repeat exactly, so the similarity (matching actions in order) decides.

    Args:
      trajectories: The trajectories of one task.
      action_key: `EnvironmentPool.action_key`; actions with equal keys match.
    """
    actions = [[action_key(t.task, s.action) for s in t.steps] for t in trajectories]
    likeness = [
        sum(difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() for b in actions)
        for a in actions
    ]
    return best(trajectories, likeness)


def shortest_of_n(trajectories: Sequence[Trajectory]) -> np.ndarray:
    return best(trajectories, [-len(t.steps) for t in trajectories])


def likeliest_of_n(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Returns all weight on the replies with the largest log-probability under the policy: [n].

    Raises:
      NotAvailable: The policy gave no log-probabilities.
    """
    _require_log_probs(trajectories)
    return best(trajectories, [t.log_prob for t in trajectories])


def fewest_invalid_of_n(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Returns all weight on the fewest invalid actions, the likeliest replies among equals: [n].

    Raises:
      NotAvailable: The policy gave no log-probabilities.
    """
    _require_log_probs(trajectories)
    return best(trajectories, [validity(t) for t in trajectories])


def _require_log_probs(trajectories: Sequence[Trajectory]) -> None:
    if not all(trajectory.has_log_probs for trajectory in trajectories):
        raise NotAvailable("the policy gives no log-probabilities of its replies")


def oracle_of_n(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Returns all weight on the best outcome, the upper bound of every rule: [n]."""
    return best(trajectories, [t.outcome for t in trajectories])


BASELINES = {
    "random_of_n": random_of_n,
    "majority_of_n": majority_of_n,
    "shortest_of_n": shortest_of_n,
    "likeliest_of_n": likeliest_of_n,
    "fewest_invalid_of_n": fewest_invalid_of_n,
    "oracle_of_n": oracle_of_n,
}
