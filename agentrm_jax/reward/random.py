"""A scorer that knows nothing: what a search gains by itself, without a reward model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from agentrm_jax.core.records import Trajectory


class RandomScorer:
    """Scores in [0, 1) drawn from the seed, the task and the replies so far."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        return [[self._draw(trajectory) for trajectory in group] for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        return 0

    def _draw(self, trajectory: Trajectory) -> float:
        names = (str(self._seed), trajectory.task.task_id, *(s.reply for s in trajectory.steps))
        digest = hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64
