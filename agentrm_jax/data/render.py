"""States as pieces of tokens: the opening, then one piece for each step."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.data.chat import first_steps, observation_tokens, opening_tokens, reply_tokens
from agentrm_jax.data.tokenizer import Tokenizer


class Renderer:
    """Renders states for one model.

    Args:
      tokenizer: The model's.
      prompt_of: The prompt of a task, or None for a model that was trained without one.
      limit: Most tokens of a state. Longer ones lose whole steps, the oldest first.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_of: Callable[[Task], Prompt | None], limit: int
    ) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self._prompt_of = prompt_of
        self._openings: dict[tuple[str, str], np.ndarray] = {}
        # Observations repeat between branches, and every state repeats those before it.
        self._observation = functools.lru_cache(maxsize=65_536)(self._encode_observation)

    def _encode_observation(self, text: str) -> tuple[int, ...]:
        return tuple(observation_tokens(self.tokenizer, text))

    def opening(self, trajectory: Trajectory) -> np.ndarray:
        """Prompt and first observation, up to where the first reply begins."""
        task = trajectory.task
        key = (task.environment, trajectory.first_observation)
        if key not in self._openings:
            tokens = opening_tokens(
                self.tokenizer, self._prompt_of(task), trajectory.first_observation
            )
            if len(tokens) > self.limit:
                raise UserError(
                    f"engine.context: the opening of task {task.task_id} takes {len(tokens)} "
                    f"tokens and {self.limit} are left for it"
                )
            self._openings[key] = np.asarray(tokens, np.int32)
        return self._openings[key]

    def step(self, step: Step) -> np.ndarray:
        """One exchange: the reply, its stop token and the observation."""
        reply = reply_tokens(self.tokenizer, step)
        observation = self._observation(step.transition.observation)
        return np.asarray([*reply, *observation], np.int32)

    def pieces(self, trajectory: Trajectory) -> tuple[list[np.ndarray], int]:
        """The state's pieces (int32 [T] each), and how many of its oldest steps did not fit."""
        opening = self.opening(trajectory)
        steps = [self.step(step) for step in trajectory.steps]
        dropped = first_steps([len(piece) for piece in steps], self.limit - len(opening))[-1]
        return [opening, *steps[dropped:]], dropped
