"""Preference pairs: two trajectories or states of one task, the better one first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.states import LabelledTree

Pair = tuple[Trajectory, Trajectory]
T = TypeVar("T")


def preference_pairs(groups: Iterable[Sequence[Trajectory]]) -> list[Pair]:
    """Returns pairs of trajectories with different outcomes.

    The best trajectory of a task is paired with its worst, the next best with the next worst, and
    so on until outcomes are equal. Each trajectory is in one pair at most.

    Args:
      groups: The trajectories of each task. Of equal outcomes the first counts as the better one.

    Returns:
      Pairs of a better and a worse trajectory, in the order of the groups.
    """
    return [
        (better, worse)
        for group in groups
        for better, worse in _matched([(each.outcome, each) for each in group])
    ]


def sibling_pairs(trees: Iterable[LabelledTree]) -> list[Pair]:
    """Returns pairs of states that differ in the last action alone and in value.

    The states end with that action, before its answer. Siblings are matched as the trajectories of
    `preference_pairs` are, by their values; of those with equal actions the first counts.

    Args:
      trees: Labelled trees; states without a label make no pair.

    Returns:
      Pairs of a better and a worse state, in the order of the trees.
    """
    pairs = []
    for tree in trees:
        families: dict[int, dict[str, tuple[float, int]]] = {}
        for node in range(1, len(tree.parents)):
            if tree.weights[node] > 0:
                family = families.setdefault(tree.parents[node], {})
                family.setdefault(tree.steps[node - 1].action, (tree.values[node], node))
        for family in families.values():
            for better, worse in _matched(list(family.values())):
                pairs.append(tuple(tree.state(n).without_last_answer() for n in (better, worse)))
    return pairs


def _matched(valued: Sequence[tuple[float, T]]) -> list[tuple[T, T]]:
    """Returns the best with the worst, and so on inwards, until values are equal."""
    ordered = sorted(valued, key=lambda each: -each[0])
    return [
        (better, worse)
        for (high, better), (low, worse) in zip(ordered, reversed(ordered), strict=True)
        if high > low
    ]
