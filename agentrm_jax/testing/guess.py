"""Guess a number: an environment of forty lines, a policy that plays it badly, and a scorer."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence

from agentrm_jax.core.records import Prompt, Task, Trajectory, Transition

GUESS_PROMPT = Prompt(
    instruction="Guess the number. Reply with\nThought: <reason>\nAction: guess <number>",
    example=(
        "Guess a number from 1 to 3.",
        "Thought: I try the middle.\nAction: guess 2",
        "Right.",
    ),
)
"""The instruction of `Guess`, with one worked turn."""


class Guess:
    """A number has to be guessed; each answer says whether a guess is too low or too high.

    Its tasks have the keys `number` and `highest` in their `spec`. Success pays 1.
    """

    def reset(self, task: Task) -> str:
        """Starts a game.

        Args:
          task: The task; see `guess_tasks`.

        Returns:
          A text with the range of the number.
        """
        self._number, self._highest = task.spec["number"], task.spec["highest"]
        return f"Guess a number from 1 to {self._highest}."

    def step(self, action: str) -> Transition:
        """Answers one guess.

        Args:
          action: `guess N`; any other text is answered as not valid.

        Returns:
          "Too low.", "Too high." or "Right.", which ends the game.
        """
        found = re.fullmatch(r"guess (\d{1,9})", action.strip())
        if found is None:
            return _answer("Say: guess <number>", valid=False)
        guess = int(found[1])
        if guess == self._number:
            return _answer("Right.", success=True)
        return _answer("Too low." if guess < self._number else "Too high.")

    def fork(self) -> Guess:
        """Copies the game.

        Returns:
          A game in the same state.
        """
        return copy.copy(self)


def guess_tasks(n: int, *, seed: int = 0, highest: int = 30, max_steps: int = 8) -> list[Task]:
    """Draws tasks of `Guess`.

    Args:
      n: Number of tasks.
      seed: Seed of the numbers to be guessed.
      highest: Largest number.
      max_steps: Guesses after which a game ends.

    Returns:
      n tasks of the environment `guess`.
    """
    draw = random.Random(f"guess {seed}")
    return [
        Task(
            environment="guess",
            task_id=f"guess/{seed}/{i}",
            max_steps=max_steps,
            spec={"number": draw.randint(1, highest), "highest": highest},
        )
        for i in range(n)
    ]


def guess_policy(state: Trajectory, n: int, seed: int) -> list[str]:
    """Replies to a state of `Guess`: numbers in the range that is left, and some outside it.

    Args:
      state: The game so far.
      n: Number of replies.
      seed: Seed of the draw.

    Returns:
      n replies in the form "Thought: ... Action: guess N".
    """
    draw = random.Random(seed)
    low, high, highest = _range_left(state)
    replies = []
    for _ in range(n):
        careless = draw.random() < 0.3
        number = draw.randint(1, highest) if careless else draw.randint(low, high)
        replies.append(
            f"Thought: {'Anything.' if careless else 'In range.'}\nAction: guess {number}"
        )
    return replies


def guess_scorer(states: Sequence[Trajectory]) -> list[float]:
    """Scores states of `Guess` by the numbers that are still possible; a solved game has 1.

    Args:
      states: Games of one task.

    Returns:
      A number in (0, 1] for each state.
    """
    scores = []
    for state in states:
        low, high, highest = _range_left(state)
        left = 1 - (high - low) / highest
        scores.append(1.0 if state.success else 0.9 * left)
    return scores


def _range_left(state: Trajectory) -> tuple[int, int, int]:
    """The smallest and the largest number that the answers leave possible, and the range's end."""
    highest = int(state.first_observation.rstrip(".").rpartition(" ")[2])
    low, high = 1, highest
    for step in state.steps:
        if found := re.fullmatch(r"guess (\d{1,9})", step.action.strip()):
            if step.transition.observation == "Too low.":
                low = max(low, int(found[1]) + 1)
            elif step.transition.observation == "Too high.":
                high = min(high, int(found[1]) - 1)
    return low, max(low, high), highest


def _answer(observation: str, *, success: bool = False, valid: bool = True) -> Transition:
    return Transition(
        observation=observation, reward=float(success), done=success, success=success, valid=valid
    )
