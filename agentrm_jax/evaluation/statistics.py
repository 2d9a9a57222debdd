"""Means with bootstrap intervals over tasks, and agreement of scores with outcomes."""

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
    """Returns the mean of independent values and its percentile bootstrap interval.

    The resampled deviations are widened by sqrt(n / (n - 1)): resampling n values estimates the
    variance with the divisor n, which makes the plain interval too short for few tasks.

    Resampling says nothing about values that are all equal. If they all lie on one of the `bounds`,
    the exact bound is used: a mean m of values in [0, 1] gives n ones with probability at most m^n,
    so that m >= ((1 - level) / 2)^(1 / n). Otherwise the interval is that one point.

    Args:
      values: [n], one for each task.
      bounds: Least and largest possible value, if they are known.
      seed: Seed of the resampling; the same seed gives the same interval.
      resamples: Number of resamples.
      level: Probability that the interval is meant to cover.

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
    means = _resampled_means(data, resamples, seed)
    return percentile_interval(found, means, n, (data.min(), data.max()), level)


def percentile_interval(
    value: float,
    resampled: np.ndarray,
    n: int,
    limits: tuple[float, float],
    level: float = 0.95,
) -> Estimate:
    """Returns a statistic of n independent values with its percentile interval; see `bootstrap`.

    Args:
      value: The statistic.
      resampled: [R] the statistic of each resample.
      n: Number of values, at least 2.
      limits: Least and largest end of the interval.
      level: Probability that the interval is meant to cover.
    """
    deviations = (resampled - value) * np.sqrt(n / (n - 1))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    ends = np.clip([value + low, value + high], *limits)
    return Estimate(mean=value, low=float(ends[0]), high=float(ends[1]), n=n)


def all_equal(
    value: float, n: int, bounds: tuple[float, float] | None, level: float = 0.95
) -> Estimate:
    """Returns the mean of n equal values with its interval; see `bootstrap`."""
    low = high = value
    if bounds is not None and value in bounds:
        reach = (bounds[1] - bounds[0]) * (1 - ((1 - level) / 2) ** (1 / n))
        low, high = max(bounds[0], value - reach), min(bounds[1], value + reach)
    return Estimate(mean=value, low=low, high=high, n=n)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """Returns the mean of a - b over the same tasks, and its interval.

    Args:
      a: [n] values in [0, 1], one for each task.
      b: [n] the other values, in the same order.
      seed: Seed of the resampling.

    Raises:
      ValueError: The lengths differ, or there are no values.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equal lengths, not {first.size} and {second.size}")
    return bootstrap(first - second, bounds=(-1.0, 1.0), seed=seed)


def bootstrap_columns(
    values: np.ndarray, *, bounds: tuple[float, float] | None = None, seed: int = 0
) -> list[Estimate]:
    """Returns the mean of each column with its interval; the same resamples serve all columns.

    Args:
      values: [n, K] values of n tasks.
      bounds: Least and largest possible value, if they are known; see `bootstrap`.
      seed: Seed of the resampling.
    """
    n, columns = values.shape
    generator = np.random.default_rng(seed)
    block = max(1, _CHUNK // n)
    resampled = np.concatenate(
        [
            generator.multinomial(n, np.full(n, 1 / n), size=min(block, RESAMPLES - start))
            @ values
            / n
            for start in range(0, RESAMPLES, block)
        ]
    )
    return [
        all_equal(float(own[0]), n, bounds)
        if np.ptp(own) == 0
        else percentile_interval(float(own.mean()), resampled[:, k], n, (own.min(), own.max()))
        for k, own in enumerate(values[:, k] for k in range(columns))
    ]


def bootstrap_ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate | None:
    """Returns the ratio of two sums over the same tasks with its interval; see `bootstrap`.

    Resamples whose denominator is 0 have no ratio and are left out.

    Args:
      numerators: [n] values, one for each task.
      denominators: [n] values of at least 0 that are not all 0.

    Returns:
      The ratio and its interval. None for a single task, or if more than one resample in twenty has
      no ratio: the interval would have no end.
    """
    data = np.stack([np.asarray(side, float) for side in (numerators, denominators)], axis=1)
    n = len(data)
    distinct, counts = np.unique(data, axis=0, return_counts=True)
    generator = np.random.default_rng(0)
    block = max(1, _CHUNK // len(distinct))
    sums = np.concatenate(
        [
            generator.multinomial(n, counts / n, size=min(block, RESAMPLES - start)) @ distinct
            for start in range(0, RESAMPLES, block)
        ]
    )
    has_ratio = sums[:, 1] > 1e-12
    if n < 2 or has_ratio.mean() < 0.95:
        return None
    ratio = float(data[:, 0].sum() / data[:, 1].sum())
    resampled = sums[has_ratio, 0] / sums[has_ratio, 1]
    return percentile_interval(ratio, resampled, n, (-np.inf, np.inf))


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
    """Returns the fraction of pairs whose better member has the higher score.

    Pairs are formed within groups, which hold the trajectories of one task each.

    Args:
      groups: (scores, outcomes) of each group. Pairs with equal outcomes do not count; equal
        scores count half.

    Returns:
      A number in [0, 1]; NaN if no pair differs in outcome.
    """
    right, total = 0.0, 0
    for scores, outcomes in groups:
        s, y = np.asarray(scores, float), np.asarray(outcomes, float)
        better = y[:, None] > y[None, :]
        right += float(ordered(s[:, None], s[None, :])[better].sum())
        total += int(better.sum())
    return right / total if total else float("nan")


def ordered(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Returns 1 for pairs whose better member has the higher score, 0.5 for equal scores, else 0.

    Args:
      better: Scores of the better members.
      worse: Scores of the worse members; any shape that broadcasts with `better`.
    """
    return (np.sign(better - worse) + 1) / 2


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Returns the weighted mean; NaN if all weights are 0."""
    total = weights.sum()
    return float(weights @ values / total) if total else float("nan")


def pearson(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns Pearson's correlation; NaN if one side is constant.

    Args:
      x: [n] numbers.
      y: [n] numbers.
      weights: [n] how often each pair counts; once by default.
    """
    w = np.ones(np.size(x)) if weights is None else np.asarray(weights, float)
    a, b, w = (np.asarray(side, float)[w > 0] for side in (x, y, w))
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - mean(a, w), b - mean(b, w)
    return float(w @ (a * b) / np.sqrt((w @ (a * a)) * (w @ (b * b))))


def spearman(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns Spearman's rank correlation; equal values share their mean rank.

    Args:
      x: [n] numbers.
      y: [n] numbers.
      weights: [n] how often each pair counts; once by default.
    """
    w = np.ones(np.size(x)) if weights is None else np.asarray(weights, float)
    return pearson(_ranks(x, w), _ranks(y, w), w)


def _ranks(values: ArrayLike, weights: np.ndarray) -> np.ndarray:
    distinct, inverse = np.unique(np.asarray(values), return_inverse=True)
    counts = np.bincount(inverse, weights, len(distinct))
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
