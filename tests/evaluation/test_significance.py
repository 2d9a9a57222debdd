"""Tests of differences against enumeration, and the differences that tasks can show."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from agentrm_jax.evaluation.significance import (
    holm,
    paired_difference,
    paired_test,
    smallest_difference,
    success_interval,
)


def test_mcnemar_by_hand() -> None:
    a = [1] * 8 + [0] * 2 + [1] * 5
    b = [0] * 8 + [1] * 2 + [1] * 5
    # Of ten tasks that one side alone solved, two or fewer are of the rarer side: 56 in 1024.
    assert paired_test(a, b) == (pytest.approx(2 * 56 / 1024), "mcnemar")
    assert paired_test(b, a) == paired_test(a, b)
    assert paired_test(a, a) == (1.0, "mcnemar")


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_enumerated_for_few_tasks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 5, (2, 7)) / 4
    differences = [float(x - y) for x, y in zip(a, b, strict=True)]
    observed = sum(differences)
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=7)
    ]
    larger = sum(s >= observed - 1e-12 for s in sums) / len(sums)
    smaller = sum(s <= observed + 1e-12 for s in sums) / len(sums)
    p_value, test = paired_test(a, b)
    assert test == "sign_flip"
    assert p_value == pytest.approx(min(1.0, 2 * min(larger, smaller)))


def test_sign_flips_of_many_tasks_agree_with_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(0.05, 0.3, 150)
    p_value, _ = paired_test(values, np.zeros(150))
    z = values.mean() / math.sqrt((values**2).mean() / 150)
    assert p_value == pytest.approx(2 * statistics.NormalDist().cdf(-abs(z)), abs=0.02)
    assert paired_test(values, np.zeros(150))[0] == p_value


def test_smallest_difference_is_found_four_times_in_five() -> None:
    values = [0.0, 1.0, -1.0, 0.5, 0.25, 0.0, 0.0, 1.0]
    normal = statistics.NormalDist()
    by_hand = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * statistics.stdev(values) / 8**0.5
    assert smallest_difference(values) == pytest.approx(by_hand)
    assert smallest_difference([0.5, 0.5]) is None  # no spread to go by
    assert smallest_difference([0.5]) is None
    n, spread = 100, 0.4
    generator = np.random.default_rng(0)
    smallest = smallest_difference(generator.permutation(np.repeat([-spread, spread], n // 2)))
    assert smallest is not None
    found = 0
    for _ in range(2000):
        drawn = generator.normal(smallest, spread, n)
        found += drawn.mean() / (spread / n**0.5) > normal.inv_cdf(0.975)
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("solved", "n"), [(0, 12), (7, 20), (20, 20)])
def test_success_intervals_are_exact(solved: int, n: int) -> None:
    found = success_interval([1.0] * solved + [0.0] * (n - solved))

    def tail(p: float, counts: range) -> float:
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    assert (found.mean, found.n) == (solved / n, n)
    if solved:
        assert tail(found.low, range(solved, n + 1)) == pytest.approx(0.025)
    else:
        assert found.low == 0.0
    if solved < n:
        assert tail(found.high, range(solved + 1)) == pytest.approx(0.025)
    else:
        assert found.high == 1.0


def test_success_intervals_of_means_over_seeds_are_resampled() -> None:
    found = success_interval([0.5, 1.0, 0.0, 0.5] * 10)
    assert found.low < found.mean == 0.5 < found.high


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 4 = 0.02, 0.01 x 3 = 0.03, 0.03 x 2 = 0.06, 0.04 x 1, but not below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_paired_difference_holds_all_of_it() -> None:
    a, b = [1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0]
    found = paired_difference(a, b)
    assert found.gain.mean == pytest.approx(0.4)
    assert (found.p_value, found.test) == (0.5, "mcnemar")  # two wins, no loss
    assert found.smallest == smallest_difference([1.0, 0.0, 1.0, 0.0, 0.0])
