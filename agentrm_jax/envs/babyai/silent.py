"""Episodes of BabyAI whose end does not tell the outcome: the agent ends them, by `done`.

The goal may be reached at any time before. No observation says so, and no episode ends at it, so
that neither the last text nor the number of steps gives the outcome away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.babyai.episode import BabyAIEpisode, action_key

DONE = "done"
_ENDED = "The episode has ended."


class SilentBabyAIEpisode(BabyAIEpisode):
    """An episode whose outcome is paid at its end, in silence."""

    def __init__(self) -> None:
        super().__init__()
        self._reached = False

    def reset(self, task: Task) -> str:
        self._reached = False
        return super().reset(task)

    def act(self, action: str, on_move: Callable[[int], None]) -> Transition:
        """Performs an action; `done` ends the episode.

        Args:
          action: The action.
          on_move: Called after each low-level move.
        """
        if action_key(action) == DONE:
            return self._paid(self._transition(_ENDED, done=True))
        return self._paid(super().act(action, on_move))

    def _paid(self, transition: Transition) -> Transition:
        success = transition.done and self._reached
        return dataclasses.replace(transition, reward=float(success), success=success)

    def _move(self, moves: Sequence[int], on_move: Callable[[int], None]) -> bool:
        """Moves as long as something in view changes, also beyond the goal; returns False."""
        for move in moves:
            before = self._view.code
            self._reached |= self._low_level(move)
            on_move(move)
            if self._view.code == before:
                break
        return False

    def fork(self) -> SilentBabyAIEpisode:
        copy = SilentBabyAIEpisode()
        self._copy_to(copy)
        copy._reached = self._reached
        return copy
