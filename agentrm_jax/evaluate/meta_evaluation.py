"""How well scores of states agree with what search trees say these are worth; numpy only.

A state's value is the mean return that was backed up through it (paper section 3.2). Intervals
come from resampling whole trees: states of one tree are not independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.evaluate.statistics import Estimate, all_equal, mean, pearson, spearman

RESAMPLES = 1000
BINS = 10  # of equal width, for calibration


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TreeStates:
    """The visited states of one tree, the root first. All arrays are [M].

    Attributes:
      nodes: Their numbers in the tree.
      parents: Numbers of their parents; -1 for the root.
      depths: Steps behind the first observation.
      values: Mean returns, in [0, 1].
      likelihoods: Mean log-probability of the tokens of the step that led there; NaN where there
        is none.
    """

    nodes: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    values: np.ndarray
    likelihoods: np.ndarray


def tree_states(tree: TreeRecord, min_visits: int = 1) -> TreeStates:
    """Those through which at least `min_visits` returns were backed up."""
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
    """Siblings with different values, as places in the concatenated states. Arrays are [P].

    Attributes:
      better: Of the one that is worth more.
      worse: Of the other.
      ties: How many pairs of siblings are worth the same; they say nothing.
    """

    better: np.ndarray
    worse: np.ndarray
    ties: int


def sibling_pairs(trees: Sequence[TreeStates]) -> Pairs:
    """All pairs of states that follow the same state."""
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
) -> dict[str, Any]:
    """Every measure of one kind of score, with intervals.

    Args:
      scores: [M] for the concatenated states; those with NaN are left out.
      calibrated: Whether scores mean values, so that it can be asked how far off they are.

    Returns:
      `pairwise_accuracy` (equal scores count half), `pearson`, `spearman`, and where it makes sense
      `calibration_error` and `squared_error`. Entries are None where nothing can be measured.
    """
    values, tree_of = _concatenated(trees)
    pairs = sibling_pairs(trees)
    right, pairs_of = _ordered(scores, pairs), tree_of[pairs.better]
    right, pairs_of = right[np.isfinite(right)], pairs_of[np.isfinite(right)]
    known = np.isfinite(scores)
    scores, values, tree_of = scores[known], values[known], tree_of[known]

    def estimate(statistic: Callable[[np.ndarray], float]) -> Estimate | None:
        return resampled(statistic, tree_of, len(trees), seed)

    found = {
        "pairwise_accuracy": _mean_of(right, pairs_of, len(trees), seed),
        "pearson": estimate(lambda w: pearson(scores, values, w)),
        "spearman": estimate(lambda w: spearman(scores, values, w)),
    }
    if calibrated:
        error = (scores - values) ** 2
        found["calibration_error"] = estimate(lambda w: calibration_error(scores, values, w))
        found["squared_error"] = estimate(lambda w: mean(error, w))
    return {name: value and dataclasses.asdict(value) for name, value in found.items()}


def by_depth(trees: Sequence[TreeStates], scores: np.ndarray, seed: int = 0) -> list[dict]:
    """Pairwise accuracy and correlation of the states at each depth, the root's left out."""
    depths = np.concatenate([tree.depths for tree in trees])
    values, tree_of = _concatenated(trees)
    pairs = sibling_pairs(trees)
    right = _ordered(scores, pairs)
    rows = []
    for depth in range(1, int(depths.max(initial=0)) + 1):
        own, two = depths == depth, depths[pairs.better] == depth
        accuracy = _mean_of(right[two], tree_of[pairs.better][two], len(trees), seed)
        correlation = pearson(scores[own], values[own])
        rows.append(
            {
                "depth": depth,
                "states": int(own.sum()),
                "pairs": int(two.sum()),
                "pairwise_accuracy": accuracy and dataclasses.asdict(accuracy),
                "pearson": correlation if np.isfinite(correlation) else None,
            }
        )
    return rows


def reliability(trees: Sequence[TreeStates], scores: np.ndarray, seed: int = 0) -> list[dict]:
    """For each bin of scores that has states: how many, their mean score and their mean value."""
    values, tree_of = _concatenated(trees)
    bins, rows = bin_of(scores), []
    for number in np.unique(bins):
        own = bins == number
        worth = _mean_of(values[own], tree_of[own], len(trees), seed)
        assert worth is not None  # there are states in it
        rows.append(
            {
                "states": int(own.sum()),
                "score": float(scores[own].mean()),
                "value": dataclasses.asdict(worth),
            }
        )
    return rows


def _concatenated(trees: Sequence[TreeStates]) -> tuple[np.ndarray, np.ndarray]:
    """[M] values of all states, and the number of each one's tree."""
    sizes = [len(tree.nodes) for tree in trees]
    return np.concatenate([tree.values for tree in trees]), np.repeat(np.arange(len(trees)), sizes)


def _ordered(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    """[P] 1 where the better state is scored higher, a half where both are scored the same."""
    return (np.sign(scores[pairs.better] - scores[pairs.worse]) + 1) / 2


def _mean_of(values: np.ndarray, groups: np.ndarray, num_groups: int, seed: int) -> Estimate | None:
    """The mean of values in [0, 1]."""
    return resampled(lambda w: mean(values, w), groups, num_groups, seed, bounds=(0.0, 1.0))


def resampled(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    num_groups: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Estimate | None:
    """A statistic and its 95% percentile interval, whole groups drawn with replacement.

    Deviations are widened by sqrt(n / (n - 1)), and where all resamples lie on one of the bounds
    the exact bound of n groups takes over, as in `statistics.bootstrap`.

    Args:
      statistic: Of weights [N], how often each entry counts; NaN where it is not defined.
      groups: [N] the entries' groups, below `num_groups`.
      bounds: What the statistic cannot exceed, where that is known.

    Returns:
      None where the statistic is not defined.
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
    deviations = (found - value) * np.sqrt(n / (n - 1))
    ends = np.clip(value + np.quantile(deviations, [0.025, 0.975]), found.min(), found.max())
    return Estimate(mean=value, low=float(ends[0]), high=float(ends[1]), n=n)


def bin_of(scores: np.ndarray) -> np.ndarray:
    """[M] bins of equal width over [0, 1]; what lies outside is in the first or the last."""
    return np.clip((scores * BINS).astype(int), 0, BINS - 1)


def calibration_error(scores: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float:
    """The expected calibration error: how far mean scores and mean values of bins are apart."""
    gaps = np.bincount(bin_of(scores), weights * (scores - values), BINS)
    total = weights.sum()
    return float(np.abs(gaps).sum() / total) if total else float("nan")
