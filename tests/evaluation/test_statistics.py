"""Intervals that cover as often as they say, and correlations against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.evaluation.statistics import (
    bootstrap,
    bootstrap_ratio,
    paired_bootstrap,
    pairwise_accuracy,
    pearson,
    spearman,
)


def _binomial(n: int, p: float) -> np.ndarray:
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@pytest.mark.parametrize(("n", "p"), [(60, 0.5), (60, 0.8), (180, 0.6), (48, 0.9)])
def test_interval_covers_a_bernoulli_mean(n: int, p: float) -> None:
    # Coverage is added up over all counts, not simulated: only the resampling is random.
    covered = 0.0
    for successes, probability in enumerate(_binomial(n, p)):
        if probability > 1e-6:
            values = np.arange(n) < successes
            found = bootstrap(values, bounds=(0.0, 1.0), seed=successes)
            covered += probability * (found.low <= p <= found.high)
    assert 0.92 <= covered <= 0.98


def test_interval_of_continuous_values_equals_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=400)
    found = bootstrap(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_all_successes_do_not_prove_certainty() -> None:
    found = bootstrap(np.ones(60), bounds=(0.0, 1.0))
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low**60 == pytest.approx(0.025)
    none = bootstrap(np.zeros(60), bounds=(0.0, 1.0))
    assert (none.low, none.high) == pytest.approx((0.0, 1 - found.low))
    constant = bootstrap(np.full(5, 0.3), bounds=(0.0, 1.0))
    assert constant.low == constant.high


def test_pairing_removes_what_tasks_share() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 5, size=100)
    a, b = difficulty + 0.5 + generator.normal(0, 0.1, 100), difficulty
    found = paired_bootstrap(a, b)
    assert 0.45 < found.low < found.mean < found.high < 0.55
    with pytest.raises(ValueError, match="equal lengths"):
        paired_bootstrap(a, b[:-1])
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_pairwise_accuracy_by_hand() -> None:
    groups = [([0.9, 0.1, 0.5], [1, 0, 0]), ([0.2, 0.2], [1, 0]), ([0.5, 0.6], [1, 1])]
    # Two pairs right, one tie that counts half, one group without a pair.
    assert pairwise_accuracy(groups) == pytest.approx(2.5 / 3)
    assert math.isnan(pairwise_accuracy([([1.0, 2.0], [0, 0])]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_spearman_is_pearson_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    x, y = ([pair[side] for pair in pairs] for side in (0, 1))

    def ranks(values: list[int]) -> list[float]:
        return [
            sum(other < v for other in values) + (1 + sum(other == v for other in values)) / 2
            for v in values
        ]

    expected = pearson(ranks(x), ranks(y))
    assert spearman(x, y) == pytest.approx(expected, nan_ok=True)
    if not math.isnan(expected):
        assert spearman([v**3 for v in x], y) == pytest.approx(expected)


def test_ratio_intervals_cover_the_true_ratio():
    """Nineteen of twenty intervals, about, hold the ratio of the expectations."""
    generator, covered, wide = np.random.default_rng(3), 0, []
    for _ in range(200):
        gap = generator.binomial(1, 0.5, size=60) * 0.6
        gained = gap * generator.binomial(1, 0.7, size=60) - 0.1 * generator.binomial(1, 0.2, 60)
        found = bootstrap_ratio(gained, gap)
        assert found is not None
        assert found.mean == pytest.approx(gained.sum() / gap.sum())
        covered += found.low <= (0.3 * 0.7 - 0.02) / 0.3 <= found.high
        wide.append(found.high - found.low)
    assert 180 <= covered <= 199
    assert 0.1 < np.mean(wide) < 0.6


def test_ratio_intervals_equal_plain_resampling():
    generator = np.random.default_rng(0)
    gap, gained = generator.random(40), generator.random(40) - 0.2
    found = bootstrap_ratio(gained, gap)
    chosen = generator.integers(40, size=(20_000, 40))
    ratios = gained[chosen].sum(axis=1) / gap[chosen].sum(axis=1)
    ratio = gained.sum() / gap.sum()
    ends = ratio + (np.quantile(ratios, [0.025, 0.975]) - ratio) * np.sqrt(40 / 39)
    assert [found.low, found.high] == pytest.approx(ends, abs=0.01)


def test_ratios_without_an_interval():
    assert bootstrap_ratio([0.5], [1.0]) is None
    assert bootstrap_ratio([0.5, 0.0], [1.0, 0.0]) is None  # one resample in four has no gap
    same = bootstrap_ratio([0.5, 0.25, 0.5], [1.0, 0.5, 1.0])
    assert (same.low, same.high) == (pytest.approx(0.5), pytest.approx(0.5))
