"""Random scores: they measure the gain of a search without a reward model."""

from __future__ import annotations

from collections.abc import Sequence

from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.seeds import seeded_bytes


class RandomScorer:
    """Scores in [0, 1) drawn from the seed, the task and the replies so far."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        return [[self._draw(trajectory) for trajectory in group] for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        return 0

    def _draw(self, trajectory: Trajectory) -> float:
        replies = (step.reply for step in trajectory.steps)
        drawn = seeded_bytes(self._seed, trajectory.task.task_id, *replies)
        return int.from_bytes(drawn, "big") / 2**64
