"""Means, bootstrap intervals over tasks, and how well scores order outcomes. numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 4000
_CHUNK = 2**21  # entries of a block of resamples; bounds memory, changes nothing else


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over n tasks and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(
    values: ArrayLike,
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Estimate:
    """The mean of independent values and its percentile bootstrap interval.

    The resampled deviations are widened by sqrt(n / (n - 1)): resampling n values estimates the
    variance with the divisor n, which makes the plain interval too short for few tasks.

    Values that are all equal cannot be resampled. Where they all lie on one of the `bounds` the
    exact bound takes over: a mean m of values in [0, 1] gives n ones with probability at most m^n,
    so that m >= ((1 - level) / 2)^(1 / n). Otherwise the interval is that one point.

    Args:
      values: [n], one for each task.
      bounds: What the values cannot exceed, where that is known.
      seed: Of the resampling; the same seed gives the same interval.

    Raises:
      ValueError: There are no values.
    """
    data = np.asarray(values, float)
    n = data.size
    if n == 0:
        raise ValueError("no values to take a mean of")
    if np.ptp(data) == 0:
        return all_equal(float(data[0]), n, bounds, level)
    found = float(data.mean())
    deviations = (_resampled_means(data, resamples, seed) - found) * np.sqrt(n / (n - 1))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    ends = np.clip([found + low, found + high], data.min(), data.max())
    return Estimate(mean=found, low=float(ends[0]), high=float(ends[1]), n=n)


def all_equal(
    value: float, n: int, bounds: tuple[float, float] | None, level: float = 0.95
) -> Estimate:
    """The mean of n values that are all the same; see `bootstrap`."""
    low = high = value
    if bounds is not None and value in bounds:
        reach = (bounds[1] - bounds[0]) * (1 - ((1 - level) / 2) ** (1 / n))
        low, high = max(bounds[0], value - reach), min(bounds[1], value + reach)
    return Estimate(mean=value, low=low, high=high, n=n)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """The mean of a - b over the same tasks in the same order, and its interval.

    The values lie in [0, 1].

    Raises:
      ValueError: The lengths differ, or there are no values.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equal lengths, not {first.size} and {second.size}")
    return bootstrap(first - second, bounds=(-1.0, 1.0), seed=seed)


def _resampled_means(data: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples] means of draws with replacement."""
    generator = np.random.default_rng(seed)
    # Equal values are drawn together: outcomes are mostly 0 or 1, and so it costs next to nothing.
    distinct, counts = np.unique(data, return_counts=True)
    block = max(1, _CHUNK // distinct.size)
    means = [
        generator.multinomial(data.size, counts / data.size, size=min(block, resamples - start))
        @ distinct
        / data.size
        for start in range(0, resamples, block)
    ]
    return np.concatenate(means)


def pairwise_accuracy(groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> float:
    """How often the better one of two is scored higher, within groups of one task each.

    Args:
      groups: (scores, outcomes) of each group. Pairs with equal outcomes do not count; equal
        scores count half.

    Returns:
      In [0, 1]; NaN where no pair differs in outcome.
    """
    right, total = 0.0, 0
    for scores, outcomes in groups:
        s, y = np.asarray(scores, float), np.asarray(outcomes, float)
        better = y[:, None] > y[None, :]
        higher = (np.sign(s[:, None] - s[None, :]) + 1) / 2
        right += float(higher[better].sum())
        total += int(better.sum())
    return right / total if total else float("nan")


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean; NaN where there is no weight."""
    total = weights.sum()
    return float(weights @ values / total) if total else float("nan")


def pearson(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Pearson's correlation; NaN where one side is constant.

    Args:
      weights: How often each pair counts; once by default.
    """
    w = np.ones(np.size(x)) if weights is None else np.asarray(weights, float)
    a, b, w = (np.asarray(side, float)[w > 0] for side in (x, y, w))
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - mean(a, w), b - mean(b, w)
    return float(w @ (a * b) / np.sqrt((w @ (a * a)) * (w @ (b * b))))


def spearman(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""
    w = np.ones(np.size(x)) if weights is None else np.asarray(weights, float)
    return pearson(_ranks(x, w), _ranks(y, w), w)


def _ranks(values: ArrayLike, weights: np.ndarray) -> np.ndarray:
    distinct, inverse = np.unique(np.asarray(values), return_inverse=True)
    counts = np.bincount(inverse, weights, len(distinct))
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
