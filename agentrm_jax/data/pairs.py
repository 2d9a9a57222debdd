"""Preference pairs: two trajectories of one task, the better one first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentrm_jax.core.records import Trajectory

Pair = tuple[Trajectory, Trajectory]


def preference_pairs(groups: Iterable[Sequence[Trajectory]]) -> list[Pair]:
    """Returns pairs of trajectories with different outcomes.

    The best trajectory of a task is paired with its worst, the next best with the next worst, and
    so on until outcomes are equal. Each trajectory is in one pair at most.

    Args:
      groups: The trajectories of each task. Of equal outcomes the first counts as the better one.

    Returns:
      Pairs of a better and a worse trajectory, in the order of the groups.
    """
    pairs = []
    for group in groups:
        ordered = sorted(group, key=lambda trajectory: -trajectory.outcome)
        for better, worse in zip(ordered, reversed(ordered), strict=True):
            if better.outcome <= worse.outcome:
                break
            pairs.append((better, worse))
    return pairs
