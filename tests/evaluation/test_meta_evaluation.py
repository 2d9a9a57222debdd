"""Weighted measures against plain ones on repeated data; pairs against all pairs looked at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agentrm_jax.evaluation import meta_evaluation as meta
from agentrm_jax.evaluation import statistics
from agentrm_jax.evaluation.meta_evaluation import TreeStates

VISITS = np.array([3, 1, 0, 2, 1, 4])
X = np.array([0.1, 0.5, 0.9, 0.5, 0.25, 0.8])
Y = np.array([0.0, 0.5, 0.2, 1.0, 0.5, 0.75])


def tree(parents, values, depths=None) -> TreeStates:
    count = len(parents)
    return TreeStates(
        nodes=np.arange(count),
        parents=np.asarray(parents),
        depths=np.zeros(count, int) if depths is None else np.asarray(depths),
        values=np.asarray(values, float),
        likelihoods=np.full(count, np.nan),
    )


def forest(seed: int, count: int) -> list[TreeStates]:
    generator, trees = np.random.default_rng(seed), []
    for _ in range(count):
        size = int(generator.integers(2, 12))
        parents = np.array([-1, *(int(generator.integers(0, i)) for i in range(1, size))])
        depths = np.zeros(size, int)
        for i in range(1, size):
            depths[i] = depths[parents[i]] + 1
        trees.append(tree(parents, generator.integers(0, 4, size) / 3, depths))
    return trees


def test_weights_count_as_repetitions() -> None:
    x, y, w = np.repeat(X, VISITS), np.repeat(Y, VISITS), VISITS.astype(float)
    assert statistics.mean(X, w) == pytest.approx(x.mean())
    assert statistics.pearson(X, Y, w) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert statistics.spearman(X, Y, w) == pytest.approx(statistics.spearman(x, y))
    ones = np.ones(len(x))
    assert meta.calibration_error(X, Y, w) == pytest.approx(meta.calibration_error(x, y, ones))


def test_the_calibration_error_bin_by_bin() -> None:
    wanted, bins = 0.0, np.minimum((X * 10).astype(int), 9)
    for number in set(bins):
        own = bins == number
        wanted += own.mean() * abs(X[own].mean() - Y[own].mean())
    assert meta.calibration_error(X, Y, np.ones(6)) == pytest.approx(wanted)
    assert meta.calibration_error(Y, Y, np.ones(6)) == 0.0
    assert meta.bin_of(np.array([-0.5, 0.0, 0.05, 0.95, 1.0, 7.0])).tolist() == [0, 0, 0, 9, 9, 9]


def test_constant_sides_have_no_correlation() -> None:
    assert np.isnan(statistics.pearson(np.full(6, 0.1), Y, np.ones(6)))
    assert np.isnan(statistics.pearson(X, Y, np.zeros(6)))


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_all_siblings_with_different_values(seed) -> None:
    trees = forest(seed, 5)
    wanted, ties, start = set(), 0, 0
    for own in trees:
        for a, b in itertools.combinations(range(len(own.nodes)), 2):
            if own.parents[a] != own.parents[b]:
                continue
            if own.values[a] == own.values[b]:
                ties += 1
            elif own.values[a] > own.values[b]:
                wanted.add((a + start, b + start))
            else:
                wanted.add((b + start, a + start))
        start += len(own.nodes)
    pairs = meta.sibling_pairs(trees)
    assert set(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True)) == wanted
    assert pairs.ties == ties


def test_measures_of_perfect_and_of_opposite_scores() -> None:
    trees = forest(1, 12)
    values = np.concatenate([own.values for own in trees])
    found = meta.measured(trees, values, calibrated=True)
    assert found["pairwise_accuracy"]["mean"] == 1.0
    assert found["pearson"]["mean"] == pytest.approx(1.0)
    assert found["calibration_error"]["mean"] == 0.0
    opposite = meta.measured(trees, -values, calibrated=False)
    assert opposite["pairwise_accuracy"]["mean"] == 0.0
    assert opposite["spearman"]["mean"] == pytest.approx(-1.0)
    assert "squared_error" not in opposite
    same = meta.measured(trees, np.full(len(values), 0.5), calibrated=True)
    assert same["pairwise_accuracy"]["mean"] == 0.5
    assert same["pearson"] is None
    assert same["squared_error"]["mean"] == pytest.approx(np.mean((values - 0.5) ** 2))


def test_unknown_scores_are_left_out() -> None:
    trees = [tree([-1, 0, 0], [0.5, 1.0, 0.0]), tree([-1, 0, 0], [0.5, 0.0, 1.0])]
    scores = np.array([np.nan, 0.9, 0.1, np.nan, 0.3, np.nan])
    found = meta.measured(trees, scores, calibrated=False)
    assert found["pairwise_accuracy"] == pytest.approx(
        {"mean": 1.0, "low": 0.025, "high": 1.0, "n": 1}
    )
    wanted = statistics.pearson([0.9, 0.1, 0.3], [1.0, 0.0, 0.0])
    assert found["pearson"]["mean"] == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_the_difference_of_accuracies_pair_by_pair(seed) -> None:
    trees, generator = forest(seed, 10), np.random.default_rng(seed)
    number = sum(len(own.nodes) for own in trees)
    scores, others = generator.random(number), generator.random(number)
    others[generator.random(number) < 0.3] = np.nan
    pairs, differences = meta.sibling_pairs(trees), []
    for better, worse in zip(pairs.better, pairs.worse, strict=True):
        if np.isfinite(others[better] + others[worse]):
            right = [x[better] > x[worse] for x in (scores, others)]
            differences.append(float(right[0]) - float(right[1]))
    found = meta.accuracy_difference(trees, scores, others)
    assert found["mean"] == pytest.approx(np.mean(differences))
    assert found["low"] <= found["mean"] <= found["high"]
    assert meta.accuracy_difference(trees, scores, np.full(number, np.nan)) is None


def test_intervals_cover_what_trees_are_drawn_from() -> None:
    """Means over trees of 1 to 6 equal states each: the interval must see that trees differ."""
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        outcomes = generator.integers(0, 2, 40).astype(float)
        groups = np.repeat(np.arange(40), generator.integers(1, 7, 40))
        found = meta.resampled(
            lambda w, x=outcomes[groups]: statistics.mean(x, w), groups, 40, seed=seed
        )
        assert found is not None
        covered += found.low <= 0.5 <= found.high
    assert covered >= 52  # 95% of 60 are 57; intervals over states alone cover about 40


def test_depths_and_bins_hold_all_states() -> None:
    trees = forest(3, 8)
    total = sum(len(own.nodes) for own in trees)
    scores = np.random.default_rng(0).random(total)
    rows = meta.by_depth(trees, scores)
    assert sum(row["states"] for row in rows) == total - len(trees)  # all but the roots
    assert sum(row["pairs"] for row in rows) == len(meta.sibling_pairs(trees).better)
    bins = meta.reliability(trees, scores)
    assert sum(row["states"] for row in bins) == total
    assert [row["score"] for row in bins] == sorted(row["score"] for row in bins)
