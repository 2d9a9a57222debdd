"""Agreement of the scores of states with the values of the same states in search trees; numpy only.

A state's value is the mean return that was backed up through it (paper section 3.2). Intervals
come from resampling whole trees: states of one tree are not independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.evaluation.statistics import (
    Estimate,
    all_equal,
    mean,
    ordered,
    pearson,
    percentile_interval,
    spearman,
)

RESAMPLES = 1000
BINS = 10  # of equal width, for calibration


class EstimateRow(TypedDict):
    """A mean over n trees with the ends of its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


class Measures(TypedDict, total=False):
    """Agreement of scores with values; an entry is None if it cannot be computed.

    Attributes:
      pairwise_accuracy: Fraction of the pairs of siblings whose better state has the higher score;
        equal scores count half.
      pearson: Correlation of scores and values.
      spearman: Correlation of their ranks.
      calibration_error: Mean distance of scores and values by bin; only of scores that estimate
        values.
      squared_error: Mean squared distance; only of scores that estimate values.
    """

    pairwise_accuracy: EstimateRow | None
    pearson: EstimateRow | None
    spearman: EstimateRow | None
    calibration_error: EstimateRow | None
    squared_error: EstimateRow | None


class DepthRow(TypedDict):
    """The states of one depth, and how well their scores agree with their values."""

    depth: int
    states: int
    pairs: int
    pairwise_accuracy: EstimateRow | None
    pearson: float | None


class ReliabilityRow(TypedDict):
    """One bin of scores: the number of its states, their mean score and their mean value."""

    states: int
    score: float
    value: EstimateRow


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TreeStates:
    """The visited states of one tree, the root first. All arrays are [M].

    Attributes:
      nodes: Their numbers in the tree.
      parents: Numbers of their parents; -1 for the root.
      depths: Steps after the first observation.
      values: Mean returns, in [0, 1].
      likelihoods: Mean log-probability of the tokens of the step that led there; NaN if it is
        not known.
    """

    nodes: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    values: np.ndarray
    likelihoods: np.ndarray


def tree_states(tree: TreeRecord, min_visits: int = 1) -> TreeStates:
    """Returns the states of a tree through which at least `min_visits` returns were backed up."""
    visits, sums = tree.backed_up()
    nodes = tree.nodes
    depths = np.zeros(tree.num_nodes, np.int64)
    parents = np.full(tree.num_nodes, -1)
    likelihoods = np.full(tree.num_nodes, np.nan)
    for number, node in sorted(nodes.items()):
        parents[number], depths[number] = node.parent, depths[node.parent] + 1
        if node.step.log_probs:
            likelihoods[number] = np.mean(node.step.log_probs)
    kept = np.flatnonzero(visits >= min_visits)
    return TreeStates(
        nodes=kept,
        parents=parents[kept],
        depths=depths[kept],
        values=sums[kept] / visits[kept],
        likelihoods=likelihoods[kept],
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Siblings with different values, as indices of the concatenated states. Arrays are [P].

    Attributes:
      better: Index of the sibling with the higher value.
      worse: Index of the other sibling.
      ties: Number of pairs of siblings with equal values; they are left out.
    """

    better: np.ndarray
    worse: np.ndarray
    ties: int


def sibling_pairs(trees: Sequence[TreeStates]) -> Pairs:
    """Returns all pairs of states that follow the same state."""
    better: list[int] = []
    worse: list[int] = []
    ties = start = 0
    for tree in trees:
        for parent in np.unique(tree.parents[tree.parents >= 0]):
            own = np.flatnonzero(tree.parents == parent)
            a, b = (own[i] for i in np.triu_indices(len(own), 1))
            difference = tree.values[a] - tree.values[b]
            better += [*(a[difference > 0] + start), *(b[difference < 0] + start)]
            worse += [*(b[difference > 0] + start), *(a[difference < 0] + start)]
            ties += int((difference == 0).sum())
        start += len(tree.nodes)
    return Pairs(better=np.asarray(better, int), worse=np.asarray(worse, int), ties=ties)


def measured(
    trees: Sequence[TreeStates], scores: np.ndarray, *, calibrated: bool, seed: int = 0
) -> Measures:
    """Returns every measure of one kind of score, with intervals.

    Args:
      trees: The states of each tree.
      scores: [M] scores of the concatenated states; those with NaN are left out.
      calibrated: Whether scores estimate values, so that their distance can be measured.
      seed: Seed of the resampling.
    """
    values, tree_of = _concatenated(trees)
    pairs = sibling_pairs(trees)
    right, pairs_of = _ordered(scores, pairs), tree_of[pairs.better]
    right, pairs_of = right[np.isfinite(right)], pairs_of[np.isfinite(right)]
    known = np.isfinite(scores)
    scores, values, tree_of = scores[known], values[known], tree_of[known]

    def estimate(statistic: Callable[[np.ndarray], float]) -> EstimateRow | None:
        return _row(resampled(statistic, tree_of, len(trees), seed))

    found: Measures = {
        "pairwise_accuracy": _mean_of(right, pairs_of, len(trees), seed),
        "pearson": estimate(lambda w: pearson(scores, values, w)),
        "spearman": estimate(lambda w: spearman(scores, values, w)),
    }
    if calibrated:
        error = (scores - values) ** 2
        found["calibration_error"] = estimate(lambda w: calibration_error(scores, values, w))
        found["squared_error"] = estimate(lambda w: mean(error, w))
    return found


def accuracy_difference(
    trees: Sequence[TreeStates], scores: np.ndarray, others: np.ndarray, seed: int = 0
) -> EstimateRow | None:
    """Returns by how much one kind of score orders siblings more often than another one.

    Both are compared on the pairs of which both know the scores.

    Args:
      trees: The states of each tree.
      scores: [M] scores of the concatenated states; NaN where one is not known.
      others: [M] the other scores.
      seed: Seed of the resampling.

    Returns:
      The difference of the pairwise accuracies with its paired interval; None without a pair.
    """
    pairs = sibling_pairs(trees)
    _, tree_of = _concatenated(trees)
    difference = _ordered(scores, pairs) - _ordered(others, pairs)
    known = np.isfinite(difference)
    difference, groups = difference[known], tree_of[pairs.better][known]
    return _row(
        resampled(lambda w: mean(difference, w), groups, len(trees), seed, bounds=(-1.0, 1.0))
    )


def by_depth(trees: Sequence[TreeStates], scores: np.ndarray, seed: int = 0) -> list[DepthRow]:
    """Returns pairwise accuracy and correlation at each depth after the root's."""
    depths = np.concatenate([tree.depths for tree in trees])
    values, tree_of = _concatenated(trees)
    pairs = sibling_pairs(trees)
    right = _ordered(scores, pairs)
    rows: list[DepthRow] = []
    for depth in range(1, int(depths.max(initial=0)) + 1):
        own, two = depths == depth, depths[pairs.better] == depth
        accuracy = _mean_of(right[two], tree_of[pairs.better][two], len(trees), seed)
        correlation = pearson(scores[own], values[own])
        rows.append(
            {
                "depth": depth,
                "states": int(own.sum()),
                "pairs": int(two.sum()),
                "pairwise_accuracy": accuracy,
                "pearson": correlation if np.isfinite(correlation) else None,
            }
        )
    return rows


def reliability(
    trees: Sequence[TreeStates], scores: np.ndarray, seed: int = 0
) -> list[ReliabilityRow]:
    """Returns the number, the mean score and the mean value of the states in each bin of scores."""
    values, tree_of = _concatenated(trees)
    bins = bin_of(scores)
    rows: list[ReliabilityRow] = []
    for number in np.unique(bins):
        own = bins == number
        worth = _mean_of(values[own], tree_of[own], len(trees), seed)
        assert worth is not None  # there are states in it
        rows.append(
            {
                "states": int(own.sum()),
                "score": float(scores[own].mean()),
                "value": worth,
            }
        )
    return rows


def _concatenated(trees: Sequence[TreeStates]) -> tuple[np.ndarray, np.ndarray]:
    """[M] values of all states, and [M] the indices of their trees."""
    sizes = [len(tree.nodes) for tree in trees]
    return np.concatenate([tree.values for tree in trees]), np.repeat(np.arange(len(trees)), sizes)


def _ordered(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    return ordered(scores[pairs.better], scores[pairs.worse])


def _mean_of(
    values: np.ndarray, groups: np.ndarray, num_groups: int, seed: int
) -> EstimateRow | None:
    """The mean of values in [0, 1]."""
    return _row(resampled(lambda w: mean(values, w), groups, num_groups, seed, bounds=(0.0, 1.0)))


def _row(estimate: Estimate | None) -> EstimateRow | None:
    if estimate is None:
        return None
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def resampled(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    num_groups: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Estimate | None:
    """Returns a statistic and its 95% percentile interval; whole groups are drawn with replacement.

    Deviations are widened by sqrt(n / (n - 1)). If all resamples lie on one of the bounds, the
    exact bound of n groups is used, as in `statistics.bootstrap`.

    Args:
      statistic: From weights [N], how often each entry counts, to a number; NaN if it is not
        defined.
      groups: [N] the entries' groups, below `num_groups`.
      num_groups: Number of groups.
      seed: Seed of the resampling.
      bounds: Least and largest possible value of the statistic, if they are known.

    Returns:
      The estimate; None if the statistic is not defined.
    """
    value = statistic(np.ones(len(groups))) if len(groups) else float("nan")
    if not np.isfinite(value):
        return None
    present = np.unique(groups)
    n = len(present)
    generator, chances = np.random.default_rng(seed), np.full(n, 1 / n)
    counts = np.zeros((RESAMPLES if n > 1 else 1, num_groups))
    counts[:, present] = generator.multinomial(n, chances, len(counts))
    found = np.array([statistic(row[groups]) for row in counts])
    found = found[np.isfinite(found)]
    if np.ptp(found) == 0:
        return all_equal(value, n, bounds)
    return percentile_interval(value, found, n, (found.min(), found.max()))


def bin_of(scores: np.ndarray) -> np.ndarray:
    """Returns [M] bins of equal width over [0, 1]; scores outside are in the first or last bin."""
    return np.clip((scores * BINS).astype(int), 0, BINS - 1)


def calibration_error(scores: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float:
    """Returns the expected calibration error: the mean distance of scores and values by bin."""
    gaps = np.bincount(bin_of(scores), weights * (scores - values), BINS)
    total = weights.sum()
    return float(np.abs(gaps).sum() / total) if total else float("nan")
