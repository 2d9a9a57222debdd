"""States as segments of tokens: the opening, then one segment for each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.data.chat import (
    first_observation_tokens,
    instruction_tokens,
    observation_tokens,
    reply_tokens,
    tokens_of,
)
from agentrm_jax.data.fitting import FittedStep, first_steps, fit_first_observation, fit_step
from agentrm_jax.data.sized_cache import SizedCache
from agentrm_jax.data.state_parts import PARTS, Part, reduced_step
from agentrm_jax.data.tokenizer import Tokenizer

_MOST_OPENINGS = 4096
"""Openings that a renderer keeps: more than tasks that run at the same time."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RenderedState:
    """A state as the tokens that a model reads.

    Attributes:
      segments: int32 [length] each; see `Renderer.state` and `Renderer.decoded_state`.
      shared_prefix: Whether the first segment is the instruction, which all states of a prompt
        begin with.
      truncated_steps: Number of steps that did not fit: the oldest, which are left out, and those
        that were shortened. A first observation that was shortened counts as one.
    """

    segments: list[np.ndarray]
    shared_prefix: bool
    truncated_steps: int


class Renderer:
    """Renders states for one model.

    Args:
      tokenizer: The model's.
      prompt_of: The prompt of a task, or None for a model that was trained without one.
      limit: Most tokens of a state. Longer states lose whole steps, the oldest first; an
        observation that alone is too long loses its middle.
      closed: Whether an action is read at the end of the text that the template writes after the
        last reply, in place of the stop token.
      parts: The parts of a step that are rendered; see `data.state_parts`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_of: Callable[[Task], Prompt | None],
        limit: int,
        *,
        closed: bool = False,
        parts: Sequence[Part] = PARTS,
    ) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        chat = tokenizer.chat
        self._closing = tuple(tokens_of(tokenizer, chat.closing, chat.stop_token)) if closed else ()
        self._prompt_of, self._parts = prompt_of, parts
        self._openings: dict[tuple[Prompt | None, str], Opening] = {}
        self._instructions: dict[Prompt, np.ndarray] = {}
        # Steps repeat between branches, and every state repeats the steps before it.
        self._observation = SizedCache(self._encode_observation)
        self._reply = SizedCache(self._encode_reply)
        self._fitted = SizedCache(self._fit)

    def _encode_observation(self, text: str) -> tuple[int, ...]:
        return tuple(observation_tokens(self.tokenizer, text))

    def _encode_reply(self, text: str, sampled: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(reply_tokens(self.tokenizer, text, sampled))

    def _fit(
        self, reply: str, sampled: tuple[int, ...], observation: str | None, room: int
    ) -> FittedStep:
        answered = observation is not None
        return fit_step(
            (reply, self._reply(reply, sampled)),
            (observation, self._observation(observation)) if answered else ("", self._closing),
            room,
            lambda text: self._encode_reply(text, ()),
            self._encode_observation if answered else lambda text: self._closing,
        )

    def instruction(self, task: Task) -> np.ndarray | None:
        """Returns the common beginning of all tasks with one prompt; None without a prompt."""
        prompt = self._prompt_of(task)
        if prompt is None:
            return None
        if prompt not in self._instructions:
            tokens = instruction_tokens(self.tokenizer, prompt)
            self._instructions[prompt] = np.asarray(tokens, np.int32)
        return self._instructions[prompt]

    def opening(self, trajectory: Trajectory) -> list[np.ndarray]:
        """Returns the instruction, if any, and the first observation, up to the first reply.

        Raises:
          UserError: The prompt leaves no room for a first observation.
        """
        return self._fitted_opening(trajectory).segments

    def _fitted_opening(self, trajectory: Trajectory) -> Opening:
        task, prompt = trajectory.task, self._prompt_of(trajectory.task)
        key = (prompt, trajectory.first_observation)
        if key not in self._openings:
            instruction = self.instruction(task)
            begin = [] if instruction is not None else instruction_tokens(self.tokenizer, None)
            before = len(begin) if instruction is None else len(instruction)
            first, shortened = fit_first_observation(
                trajectory.first_observation,
                before,
                self.limit,
                lambda text: first_observation_tokens(self.tokenizer, text, prompt),
            )
            segments = [np.asarray([*begin, *first], np.int32)]
            if instruction is not None:
                segments.insert(0, instruction)
            if before + len(first) > self.limit:
                raise UserError(
                    f"must leave {before + len(first)} tokens for the prompt of task "
                    f"{task.task_id} and its first observation (it leaves {self.limit})",
                    field="engine.context",
                )
            if len(self._openings) >= _MOST_OPENINGS:
                del self._openings[next(iter(self._openings))]
            self._openings[key] = Opening(segments, shortened)
        return self._openings[key]

    def _fitted_steps(self, trajectory: Trajectory) -> tuple[Opening, list[Turn], int]:
        """Returns the opening, the steps that fit, and the number of the oldest that do not."""
        opening, turns, firsts = self._read(trajectory)
        return opening, turns[firsts[-1] :], firsts[-1]

    def _rendered(
        self, segments: list[np.ndarray], trajectory: Trajectory, truncated: int
    ) -> RenderedState:
        shared_prefix = self.instruction(trajectory.task) is not None
        return RenderedState(
            segments=segments, shared_prefix=shared_prefix, truncated_steps=truncated
        )

    def _read(self, trajectory: Trajectory) -> tuple[Opening, list[Turn], list[int]]:
        """Returns the opening, all steps, and the first step that each state keeps."""
        opening = self._fitted_opening(trajectory)
        room = self.limit - sum(map(len, opening.segments))
        turns = []
        for whole in trajectory.steps:
            step = reduced_step(whole, self._parts)
            answer = step.transition.observation if step.answered else None
            fitted = self._fitted(step.reply, step.token_ids, answer, room)
            if fitted.length > room:
                raise UserError(
                    f"must leave at least {fitted.length} tokens for a step of task "
                    f"{trajectory.task.task_id} (it leaves {room})",
                    field="engine.context",
                )
            reply, observation = tuple(fitted.reply), tuple(fitted.observation)
            turns.append(Turn(reply, observation, step, fitted.shortened))
        return opening, turns, first_steps([len(t.reply) + len(t.observation) for t in turns], room)

    def state(self, trajectory: Trajectory) -> RenderedState:
        """Renders a state with one segment for each step: reply, stop token and observation.

        A state whose last action is not answered ends where `both_ends` reads that action.

        Raises:
          UserError: The prompt and the first observation, or a step alone, exceed the limit.
        """
        opening, turns, removed = self._fitted_steps(trajectory)
        steps = [np.asarray([*t.reply, *t.observation], np.int32) for t in turns]
        truncated = removed + opening.shortened + sum(turn.shortened for turn in turns)
        return self._rendered([*opening.segments, *steps], trajectory, truncated)

    def both_ends(self, trajectory: Trajectory) -> tuple[list[Ends], int]:
        """Renders both ends of each step, at which values are trained.

        Replies and observations have segments of their own, so that the segments of the last end
        begin with those of all ends before it, as long as the same steps are kept.

        Returns:
          The ends of each state, the one before any step first; and the number of truncated steps
          of the last state (see `RenderedState`).

        Raises:
          UserError: As of `state`.
        """
        (opening, shortened), turns, firsts = self._read(trajectory)
        steps = [self._step_segments(turn) for turn in turns]
        ends = [Ends(None, opening)]
        for step, first in enumerate(firsts[1:]):
            earlier = [segment for _, kept in steps[first:step] for segment in kept]
            action, state = steps[step]
            ends.append(Ends([*opening, *earlier, action], [*opening, *earlier, *state]))
        shortened += sum(turn.shortened for turn in turns[firsts[-1] :])
        return ends, firsts[-1] + shortened

    def last_end(self, trajectory: Trajectory) -> RenderedState:
        """Renders the last of the ends that `both_ends` renders, with the same segments.

        That is the end of the last action if it is not answered, else the state after it.

        Raises:
          UserError: As of `state`.
        """
        opening, turns, removed = self._fitted_steps(trajectory)
        segments = list(opening.segments)
        for turn in turns:
            action, state = self._step_segments(turn)
            segments += state if turn.step.answered else [action]
        truncated = removed + opening.shortened + sum(turn.shortened for turn in turns)
        return self._rendered(segments, trajectory, truncated)

    def forget(self) -> None:
        """Forgets the tokens of texts that were rendered, to free their memory."""
        self._openings.clear()
        for remembered in (self._observation, self._reply, self._fitted):
            remembered.clear()

    def _step_segments(self, turn: Turn) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns the segment up to the end of the action, and those up to the state after it."""
        action, n = np.asarray([*turn.reply, *self._closing], np.int32), len(self._closing)
        if turn.observation[:n] == self._closing:  # it begins with the end of a conversation
            return action, [action, np.asarray(turn.observation[n:], np.int32)]
        segments = [np.asarray(part, np.int32) for part in (turn.reply, turn.observation)]
        return action, segments

    def decoded_state(self, trajectory: Trajectory) -> RenderedState:
        """Renders a state with the segments that decoding left in the prefix cache.

        The tokens that were read while a reply was decoded are a segment, and the tokens between
        two replies are one. If the oldest steps did not fit, no token after them was read in its
        present position before, and all steps are one segment.

        Raises:
          UserError: As of `state`.
        """
        opening, turns, removed = self._fitted_steps(trajectory)
        truncated = removed + opening.shortened + sum(turn.shortened for turn in turns)
        segments = list(opening.segments)
        if removed:
            rest = [token for t in turns for token in (*t.reply, *t.observation)]
            segments += [np.asarray(rest, np.int32)] if rest else []
            return self._rendered(segments, trajectory, truncated)
        for turn in turns:
            # Decoding begins at the last token before the reply; it never reads the token that
            # ended it, nor the last token of a reply that was cut off.
            before, last = segments[-1][:-1], segments[-1][-1:]
            read = len(turn.reply) - 1 - turn.cut_off
            segments[-1:] = [before] if len(before) else []
            segments.append(np.asarray([*last, *turn.reply[:read]], np.int32))
            segments.append(np.asarray([*turn.reply[read:], *turn.observation], np.int32))
        return self._rendered(segments, trajectory, truncated)


class Opening(NamedTuple):
    """The segments before the first reply, and whether the first observation lost its middle."""

    segments: list[np.ndarray]
    shortened: bool


class Ends(NamedTuple):
    """Segments up to the end of a step's action, and up to the state after it.

    There is no action before the first step.
    """

    action: list[np.ndarray] | None
    state: list[np.ndarray]


class Turn(NamedTuple):
    """The tokens of a step: the reply with its stop token, and the text up to the next reply.

    If the action is not answered, that text is the one up to the token at which it is read.
    """

    reply: tuple[int, ...]
    observation: tuple[int, ...]
    step: Step
    shortened: bool = False

    @property
    def cut_off(self) -> bool:
        """Whether the reply was decoded and the policy did not end it itself."""
        return self.step.cut_off
