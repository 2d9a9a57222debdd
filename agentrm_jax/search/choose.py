"""Choosing among n trajectories of one task: best-of-n and the baselines beside it.

Each rule gives one weight for each trajectory, summing to 1, so that the rule's expected outcome is
exact and needs no further sampling. All rules look at the same n trajectories.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.core.records import Task, Trajectory


def argmax_weights(scores: Sequence[float]) -> np.ndarray:
    """All weight on the largest score; the first of equals."""
    weights = np.zeros(len(scores))
    weights[int(np.argmax(scores))] = 1.0
    return weights


def best(trajectories: Sequence[Trajectory], scores: Sequence[float]) -> np.ndarray:
    """All weight on the largest score of those whose environment did not break, if any."""
    return argmax_weights(_ended(trajectories, scores))


def best_of_fewer(trajectories: Sequence[Trajectory], scores: Sequence[float]) -> np.ndarray:
    """The weights of `best` where only k of the n trajectories were sampled, for every k.

    Returns:
      [n, n], k - 1 down: how often each trajectory is the best of k, over all ways to draw them.
    """
    n = len(trajectories)
    order = np.argsort(-np.array(_ended(trajectories, scores)), kind="stable")
    weights = np.zeros((n, n))
    for k in range(1, n + 1):
        for place, i in enumerate(order):  # the others of the k are drawn from those behind it
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
    """The trajectory whose actions are most like all the others'.

    With repeated action sequences this is the vote of self-consistency; long agent trajectories
    seldom repeat exactly, so that likeness (matching actions in order) decides.

    Args:
      trajectories: Of one task.
      action_key: `EnvironmentPool.action_key`: which actions are the same to the environment.
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
    """The largest log-probability of all replies under the policy itself."""
    return best(trajectories, [sum(sum(s.log_probs) for s in t.steps) for t in trajectories])


def oracle_of_n(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """The best outcome: what no chooser can exceed."""
    return best(trajectories, [t.outcome for t in trajectories])


BASELINES = {
    "random_of_n": random_of_n,
    "majority_of_n": majority_of_n,
    "shortest_of_n": shortest_of_n,
    "likeliest_of_n": likeliest_of_n,
    "oracle_of_n": oracle_of_n,
}
