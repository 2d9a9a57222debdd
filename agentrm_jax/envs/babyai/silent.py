"""BabyAI without an end that tells the outcome: the agent itself ends an episode, by `done`.

The goal may be reached at any time before. No observation says so, and no episode ends at it, so
that neither the last text nor the number of steps gives the outcome away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, Transition
from agentrm_jax.envs.babyai.episode import BabyAIEpisode, action_key
from agentrm_jax.envs.babyai.family import BabyAI
from agentrm_jax.envs.perturbations import SEPARATOR, SILENT, renamed

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


class SilentBabyAI(BabyAI):
    """The levels of BabyAI, each ended by the agent."""

    name = f"{BabyAI.name}{SEPARATOR}{SILENT}"
    end_reveals_outcome = False

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        tasks = super().tasks(split, kinds=kinds, n=n, seed=seed)
        return [renamed(task, BabyAI.name, self.name) for task in tasks]

    def prompt(self) -> Prompt:
        """Returns BabyAI's prompt with the action `done`."""
        told = super().prompt()
        last = "check available actions\n"
        instruction = told.instruction.replace(
            last, f"{last}{DONE}: ends the episode. Say it when the goal is reached; nothing else "
            "tells you.\n",
        )  # fmt: skip
        return dataclasses.replace(told, instruction=instruction)

    def create(self) -> SilentBabyAIEpisode:
        return SilentBabyAIEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """Returns the turns of BabyAI's expert and `done`, or None if they do not succeed."""
        own = renamed(task, self.name, BabyAI.name)
        turns = super().demonstrate(dataclasses.replace(own, max_steps=max(1, task.max_steps - 1)))
        if turns is None or len(turns) >= task.max_steps:
            return None
        turns = [*turns, Demonstration(thought="The goal is reached.", action=DONE)]
        episode = self.create()
        episode.reset(task)
        return turns if [episode.step(turn.action) for turn in turns][-1].success else None
