"""The gain in score of each doubling, for example of the number of trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agentrm_jax.evaluation.statistics import Estimate, bootstrap


class LogFit(NamedTuple):
    """The line of a score over log2(x), from one x to another.

    Attributes:
      low: The least x.
      high: The largest x.
      per_doubling: Its slope, the gain of each doubling of x, with its interval over tasks.
    """

    low: float
    high: float
    per_doubling: Estimate


def log_fits(
    scores: Mapping[float, Mapping[str, float]], ends: Sequence[float] = ()
) -> Iterator[LogFit]:
    """Yields the least-squares line of a score over log2(x) in each range of x.

    The same tasks are scored at each x, so the line is fitted to each task and tasks are resampled.
    A curve that saturates has a slope near zero in its last range.

    Args:
      scores: By x and task; tasks that are not scored at each x are left out.
      ends: The ends of the ranges, in order; empty for one range from the least x to the largest.
        Ranges with fewer than two x are left out.
    """
    tasks = sorted(set.intersection(*(set(each) for each in scores.values())))
    for low, high in itertools.pairwise(ends or (min(scores), max(scores))):
        points = [x for x in sorted(scores) if low <= x <= high]
        if len(points) < 2 or not tasks:
            continue
        x = np.log2(points)
        x -= x.mean()
        y = np.array([[scores[point][task] for point in points] for task in tasks])
        yield LogFit(low, high, bootstrap(y @ x / (x @ x)))
