"""Conversations as tokens.

The rendering is append-only: every prefix of a trajectory renders to a prefix of its tokens, so
that one pass over a trajectory reads all its states. A reply ends with one `stop` token, whether
the policy sampled it or was cut off.

    begin  user(instruction) assistant("OK.") user(example) assistant(reply) ...   prompt, if any
           user(first observation) assistant(                                      end of state 0
           reply stop                                                              end of action 1
           ) user(observation) assistant(                                          end of state 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Trajectory


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """The tokens around turns."""

    begin: tuple[int, ...]
    user_open: tuple[int, ...]
    user_close: tuple[int, ...]
    assistant_open: tuple[int, ...]
    assistant_close: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The token that ends a reply."""
        return self.assistant_close[0]


class ChatTokenizer(Protocol):
    """What rendering asks of a tokenizer. Text never encodes to the tokens of `chat`."""

    @property
    def chat(self) -> ChatFormat: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A trajectory as tokens.

    Attributes:
      tokens: [T] int32.
      reply_spans: Of each step [start, end): the reply with its stop token.
      action_ends: Of each step, where its stop token is.
      state_ends: Of each state, where its last token is: one more than steps.
    """

    tokens: np.ndarray
    reply_spans: tuple[tuple[int, int], ...]
    action_ends: tuple[int, ...]
    state_ends: tuple[int, ...]


def opening_tokens(
    tokenizer: ChatTokenizer, prompt: Prompt | None, first_observation: str
) -> list[int]:
    """Everything before the first reply."""
    return [
        *instruction_tokens(tokenizer, prompt),
        *first_observation_tokens(tokenizer, first_observation),
    ]


def instruction_tokens(tokenizer: ChatTokenizer, prompt: Prompt | None) -> list[int]:
    """What all conversations with a prompt begin with."""
    chat = tokenizer.chat
    tokens = list(chat.begin)
    if prompt is None:
        return tokens
    for i, text in enumerate((prompt.instruction, "OK.", *prompt.example)):
        before, behind = (
            (chat.assistant_open, chat.assistant_close)
            if i % 2
            else (chat.user_open, chat.user_close)
        )
        tokens.extend((*before, *tokenizer.encode(text), *behind))
    return tokens


def first_observation_tokens(tokenizer: ChatTokenizer, first_observation: str) -> list[int]:
    """What follows the instruction, up to where the first reply begins."""
    chat = tokenizer.chat
    return [
        *chat.user_open,
        *tokenizer.encode(first_observation),
        *chat.user_close,
        *chat.assistant_open,
    ]


def reply_tokens(tokenizer: ChatTokenizer, reply: str, sampled: Sequence[int] = ()) -> list[int]:
    """A reply as it was sampled, and the stop token.

    It is encoded where an expert wrote it, and where what was sampled is another text here: the
    tokens of a model with another tokenizer.
    """
    own = bool(sampled) and tokenizer.decode(sampled) == reply
    return [*(sampled if own else tokenizer.encode(reply)), tokenizer.chat.stop]


def observation_tokens(tokenizer: ChatTokenizer, observation: str) -> list[int]:
    """What follows a reply's stop token, up to where the next reply begins."""
    chat = tokenizer.chat
    return [
        *chat.assistant_close[1:],
        *chat.user_open,
        *tokenizer.encode(observation),
        *chat.user_close,
        *chat.assistant_open,
    ]


def render(
    tokenizer: ChatTokenizer,
    prompt: Prompt | None,
    trajectory: Trajectory,
    limit: int | None = None,
) -> tuple[Rendered, int]:
    """A trajectory as tokens, and how many of its oldest steps were left out to fit `limit`."""
    opening = opening_tokens(tokenizer, prompt, trajectory.first_observation)
    pieces = [
        (
            reply_tokens(tokenizer, step.reply, step.token_ids),
            observation_tokens(tokenizer, step.transition.observation),
        )
        for step in trajectory.steps
    ]
    dropped = 0
    if limit is not None:
        dropped = first_steps([len(a) + len(b) for a, b in pieces], limit - len(opening))[-1]
    tokens = list(opening)
    spans, state_ends = [], [len(tokens) - 1]
    for reply, observation in pieces[dropped:]:
        spans.append((len(tokens), len(tokens) + len(reply)))
        tokens.extend(reply)
        tokens.extend(observation)
        state_ends.append(len(tokens) - 1)
    rendered = Rendered(
        tokens=np.asarray(tokens, np.int32),
        reply_spans=tuple(spans),
        action_ends=tuple(end - 1 for _, end in spans),
        state_ends=tuple(state_ends),
    )
    return rendered, dropped


def first_steps(lengths: Sequence[int], room: int) -> list[int]:
    """The first step that each state keeps, the state before any step included.

    Where a new step makes the kept ones longer than the room, the oldest go until half of the room
    is free: what is left can then be continued for some steps before it has to be read anew from
    its beginning.

    Args:
      lengths: Tokens of each step.
      room: Most tokens that the steps of a state may take.
    """
    firsts, first, held = [0], 0, 0
    for i, length in enumerate(lengths):
        held += length
        if held > room:
            while first < i and held > room // 2:
                held -= lengths[first]
                first += 1
            if held > room:  # the newest step alone
                first, held = i + 1, 0
        firsts.append(first)
    return firsts
