"""Tests of differences over tasks, and the differences that a number of tasks can show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from agentrm_jax.evaluation.statistics import Estimate, bootstrap, paired_bootstrap

_LEVEL, _POWER = 0.95, 0.8
_FLIPS = 9999
_CHUNK = 2**21  # numbers of a block of sign flips; bounds memory, changes nothing else

Test = Literal["mcnemar", "sign_flip"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """The mean difference of two methods over the same tasks.

    Attributes:
      gain: Mean of a - b with its 95% interval.
      p_value: Two-sided probability of a difference of this size if the methods are equally good.
      test: The test that gave `p_value`: see `paired_test`.
      smallest: See `smallest_difference`.
    """

    gain: Estimate
    p_value: float
    test: Test
    smallest: float | None


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Returns the mean of a - b over the same tasks, its interval and its test.

    Args:
      a: [n] values in [0, 1], one for each task.
      b: [n] the other values, in the same order.

    Raises:
      ValueError: The lengths differ, or there are no values.
    """
    gain = paired_bootstrap(a, b)
    p_value, test = paired_test(a, b)
    smallest = smallest_difference(np.asarray(a, float) - np.asarray(b, float))
    return PairedDifference(gain=gain, p_value=p_value, test=test, smallest=smallest)


def paired_test(a: ArrayLike, b: ArrayLike) -> tuple[float, Test]:
    """Returns the two-sided p-value of a difference over the same tasks, and the test's name.

    Values that are all 0 or 1, such as the successes of one seed, get McNemar's exact test: of the
    tasks that only one method solved, each is as likely to be of either. Other values get a
    sign-flip test of their mean difference: exact for few tasks, with 9,999 random flips otherwise.

    Args:
      a: [n] values, one for each task.
      b: [n] the other values, in the same order.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if is_binary(first) and is_binary(second):
        wins, losses = int((first > second).sum()), int((first < second).sum())
        if wins + losses == 0:
            return 1.0, "mcnemar"
        return float(stats.binomtest(wins, wins + losses, 0.5).pvalue), "mcnemar"
    found = stats.permutation_test(
        (first - second,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=max(1, _CHUNK // first.size),
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue), "sign_flip"


def is_binary(values: ArrayLike) -> bool:
    """Returns whether all values are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def smallest_difference(differences: ArrayLike) -> float | None:
    """Returns the true mean difference that this many tasks show with a probability of 80%.

    A test at the 5% level finds a difference of (z_0.975 + z_0.8) sd / sqrt(n) in four runs of
    five. A smaller difference is more likely to be missed: "not distinguishable" says little.

    Args:
      differences: [n] the differences, one for each task.

    Returns:
      The difference; None if the differences are all equal, because their spread is not known.
    """
    values = np.asarray(differences, float)
    if values.size < 2 or np.ptp(values) == 0:
        return None
    quantiles = stats.norm.ppf((1 + _LEVEL) / 2) + stats.norm.ppf(_POWER)
    return float(quantiles * values.std(ddof=1) / math.sqrt(values.size))


def success_interval(successes: ArrayLike) -> Estimate:
    """Returns a success rate with its 95% interval.

    Values that are all 0 or 1 get the exact interval of Clopper and Pearson, others (means over
    seeds, expectations) the bootstrap's.

    Args:
      successes: [n] in [0, 1], one for each task.
    """
    values = np.asarray(successes, float)
    if not is_binary(values):
        return bootstrap(values, bounds=(0.0, 1.0))
    interval = stats.binomtest(int(values.sum()), values.size).proportion_ci(_LEVEL, "exact")
    return Estimate(
        mean=float(values.mean()),
        low=float(interval.low),
        high=float(interval.high),
        n=values.size,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that are corrected for their number by Holm's step-down rule.

    The smallest of m p-values is multiplied by m, the next one by m - 1, and so on; none becomes
    smaller than the one before it. The chance of any false finding is then at most the level.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
