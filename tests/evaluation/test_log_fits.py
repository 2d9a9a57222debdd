"""Lines of a score over the logarithm of what doubles, against numpy's polynomial fit."""

from __future__ import annotations

import numpy as np
import pytest

from agentrm_jax.evaluation.log_fits import log_fits


def curve(rng: np.random.Generator, points, tasks: int) -> dict[float, dict[str, float]]:
    return {x: {f"t{i}": rng.random() for i in range(tasks)} for x in points}


def test_the_slope_is_that_of_the_mean_curve() -> None:
    scores = curve(np.random.default_rng(0), (1, 2, 3, 8, 64), 20)
    [fit] = log_fits(scores)
    means = [np.mean(list(scores[x].values())) for x in scores]
    slope, _ = np.polyfit(np.log2(list(scores)), means, 1)
    assert (fit.low, fit.high, fit.per_doubling.n) == (1, 64, 20)
    assert fit.per_doubling.mean == pytest.approx(slope)
    assert fit.per_doubling.low < slope < fit.per_doubling.high


def test_a_curve_that_saturates_is_flat_in_its_last_range() -> None:
    rng = np.random.default_rng(1)
    scores = {
        x: {f"t{i}": 0.1 * np.log2(min(x, 8)) + rng.normal(scale=0.01) for i in range(30)}
        for x in (1, 2, 4, 8, 16, 32, 64)
    }
    rises, flat = (fit.per_doubling for fit in log_fits(scores, (1, 8, 64)))
    assert rises.low > 0.09
    assert rises.high < 0.11
    assert flat.low < 0 < flat.high


def test_tasks_that_are_not_everywhere_and_ranges_without_two_points_are_left_out() -> None:
    scores = curve(np.random.default_rng(2), (8, 16, 32), 5)
    del scores[16]["t3"]
    [fit] = log_fits(scores, (1, 8, 64))
    assert (fit.low, fit.high, fit.per_doubling.n) == (8, 64, 4)
    assert list(log_fits({8: {"a": 1.0}, 16: {"b": 1.0}})) == []
