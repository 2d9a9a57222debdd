"""Scores of the random game: drawn from the replies, so that they say nothing of the outcome."""

from __future__ import annotations

import math
from collections.abc import Callable

from random_game import draw

from agentrm_jax.core.records import Trajectory


def coarse(state: Trajectory) -> float:
    """One of eleven scores, so that there are ties."""
    return round(draw("score", state.task.task_id, *(step.reply for step in state.steps)), 1)


def sometimes_undecided(state: Trajectory) -> float:
    replies = [step.reply for step in state.steps]
    return math.nan if draw("undecided", state.task.task_id, *replies) < 0.4 else coarse(state)


def undecided(state: Trajectory) -> float:
    return math.nan


class GameScorer:
    """A `Scorer` that counts its calls and their groups; a state costs one token."""

    def __init__(self, score: Callable[[Trajectory], float] = coarse) -> None:
        self.score_of, self.groups, self.calls = score, 0, 0

    def score(self, groups):
        assert groups
        assert all(groups)
        self.groups, self.calls = self.groups + len(groups), self.calls + 1
        return [[self.score_of(state) for state in group] for group in groups]

    def cost(self, group):
        return len(group)
