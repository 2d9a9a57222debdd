"""Conversations as tokens.

The rendering is append-only: every prefix of a trajectory renders to a prefix of its tokens, so
that one pass over a trajectory reads all its states. A reply ends with one `stop` token, whether
the policy sampled it or was cut off.

    begin  user(instruction) assistant("OK.") user(example) assistant(reply) ...   prompt, if any
           user(first observation) assistant(                                      end of state 0
           reply stop                                                              end of action 1
           ) user(observation) assistant(                                          end of state 1

Text between two control tokens is encoded in one call, whether it comes from the template or from
a turn: tokenizers merge across the border, and so do the tokens of `apply_chat_template`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from agentrm_jax.core.records import ACKNOWLEDGEMENT, Prompt, Step, Trajectory
from agentrm_jax.data.fitting import FittedStep, first_steps, fit_first_observation, fit_step

Frame = tuple[int | str, ...]
"""The tokens and texts around a turn; a text is encoded together with the turn it touches."""

Strip = tuple[str | None, str | None]
"""Characters that a template removes from both ends of a turn; None: all blanks, "": nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """The tokens and the text around turns.

    Attributes:
      begin: Before the first turn.
      user_open: Before a turn of the user.
      user_close: After it.
      assistant_open: Before a reply, as a model that is asked for one reads it.
      assistant_close: After a reply; begins with the stop token.
      reply_before: Blanks that the template writes before a reply and a model samples itself.
      reply_after: The same before the stop token.
      user_strip: What is removed from the ends of a user's turn.
      reply_strip: What is removed from the ends of a written reply.
      between_users: Text between two turns of the user that follow each other.
      closing: What follows the stop token at the end of a conversation.
      ends: Further tokens that end a reply.
      date: The day on which the template is rendered, if it asks for it.
      drops_reasoning: Whether the template removes or rewrites the reasoning of earlier replies,
        which is kept here.
    """

    begin: Frame
    user_open: Frame
    user_close: Frame
    assistant_open: Frame
    assistant_close: Frame
    reply_before: str = ""
    reply_after: str = ""
    user_strip: Strip = ("", "")
    reply_strip: Strip = ("", "")
    between_users: str = ""
    closing: Frame = ()
    ends: tuple[int, ...] = ()
    date: str = ""
    drops_reasoning: bool = False

    @property
    def stop_token(self) -> int:
        """The token that stands after every reply."""
        stop = self.assistant_close[0]
        assert isinstance(stop, int)
        return stop

    @property
    def stop(self) -> tuple[int, ...]:
        """The tokens that end a reply: `stop_token`, then the other ends of text."""
        return (self.stop_token, *self.ends)


class ChatTokenizer(Protocol):
    """The methods of a tokenizer that rendering uses. Text never encodes to its control tokens."""

    @property
    def chat(self) -> ChatFormat: ...

    @property
    def control(self) -> Collection[int]:
        """Tokens that are never part of a reply: the chat's own, ends of text and so on."""
        ...

    def encode(self, text: str, before: int | None = None, after: int | None = None) -> list[int]:
        """Returns the tokens of a text between two control tokens.

        Args:
          before: The token before the text; None at the beginning of a conversation.
          after: The token after it, if one is known.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A trajectory as tokens.

    Attributes:
      tokens: [T] int32.
      reply_spans: Of each step [start, end): the reply with its stop token; empty for a reply that
        had to be shortened.
      action_ends: Of each step, where its stop token is.
      state_ends: Of each state, where its last token is: one more than steps.
      shortened: How many steps were shortened to fit; the first observation counts as one.
    """

    tokens: np.ndarray
    reply_spans: tuple[tuple[int, int], ...]
    action_ends: tuple[int, ...]
    state_ends: tuple[int, ...]
    shortened: int = 0


def tokens_of(
    tokenizer: ChatTokenizer, parts: Sequence[int | str], before: int | None = None
) -> list[int]:
    """Returns the tokens of ids and texts in a row; texts that touch are encoded together.

    Args:
      parts: Ids stay as they are.
      before: The token before them, None at the beginning of a conversation.
    """
    groups = [
        list(group) for _, group in itertools.groupby(parts, key=lambda part: isinstance(part, str))
    ]
    tokens: list[int] = []
    for i, group in enumerate(groups):
        if isinstance(group[0], int):
            tokens.extend(group)  # type: ignore[arg-type]
            before = tokens[-1]
            continue
        after = groups[i + 1][0] if i + 1 < len(groups) else None
        assert not isinstance(after, str)
        tokens.extend(tokenizer.encode("".join(map(str, group)), before, after))
    return tokens


def opening_tokens(
    tokenizer: ChatTokenizer, prompt: Prompt | None, first_observation: str
) -> list[int]:
    """Returns everything before the first reply."""
    return [
        *instruction_tokens(tokenizer, prompt),
        *first_observation_tokens(tokenizer, first_observation, prompt),
    ]


def instruction_tokens(tokenizer: ChatTokenizer, prompt: Prompt | None) -> list[int]:
    """Returns what all conversations with a prompt begin with.

    Text at its end that touches the first observation is not part of it.
    """
    return tokens_of(tokenizer, _instruction_parts(tokenizer.chat, prompt)[0])


def first_observation_tokens(
    tokenizer: ChatTokenizer, first_observation: str, prompt: Prompt | None = None
) -> list[int]:
    """Returns what follows the instruction, up to where the first reply begins."""
    chat = tokenizer.chat
    head, tail = _instruction_parts(chat, prompt)
    parts = [*tail, *_user_turn(chat, first_observation), *chat.assistant_open]
    before = next((part for part in reversed(head) if isinstance(part, int)), None)
    return tokens_of(tokenizer, parts, before)


def _instruction_parts(
    chat: ChatFormat, prompt: Prompt | None
) -> tuple[list[int | str], list[int | str]]:
    """The parts before the first observation, and the last text of them, which touches it."""
    parts = list(chat.begin)
    if prompt is not None:
        turns = (prompt.instruction, ACKNOWLEDGEMENT, *prompt.example)
        for i, text in enumerate(turns):
            parts += _reply_turn(chat, text) if i % 2 else _user_turn(chat, text)
        if len(turns) % 2 and chat.between_users:
            parts.append(chat.between_users)
    touching = not (chat.user_open and isinstance(chat.user_open[0], int))
    end = len(parts)
    while touching and end and isinstance(parts[end - 1], str):
        end -= 1
    return parts[:end], parts[end:]


def _user_turn(chat: ChatFormat, text: str) -> list[int | str]:
    return [*chat.user_open, stripped(text, chat.user_strip), *chat.user_close]


def _reply_turn(chat: ChatFormat, text: str) -> list[int | str]:
    return [*chat.assistant_open, *_reply_parts(chat, text), *chat.assistant_close]


def _reply_parts(chat: ChatFormat, text: str) -> tuple[str, str, str]:
    return chat.reply_before, stripped(text, chat.reply_strip), chat.reply_after


def stripped(text: str, strip: Strip) -> str:
    """Returns a turn as a template writes it that removes characters from its ends."""
    return text.lstrip(strip[0]).rstrip(strip[1])


def reply_tokens(tokenizer: ChatTokenizer, reply: str, sampled: Sequence[int] = ()) -> list[int]:
    """Returns a reply as it was sampled, and the stop token.

    The text is encoded if an expert wrote it, and if the sampled tokens are not this text here or
    hold control tokens: they are of another tokenizer, or would forge a turn.
    """
    own = bool(sampled) and tokenizer.decode(sampled) == reply
    if own and not any(token in tokenizer.control for token in sampled):
        return [*sampled, tokenizer.chat.stop_token]
    return [*_written_tokens(tokenizer, reply), tokenizer.chat.stop_token]


def _written_tokens(tokenizer: ChatTokenizer, reply: str) -> list[int]:
    """The tokens of a written reply after the text before it, with which it is encoded."""
    chat = tokenizer.chat
    ids = [i for i, part in enumerate(chat.assistant_open) if isinstance(part, int)]
    before = chat.assistant_open[ids[-1]] if ids else chat.stop_token
    assert isinstance(before, int)
    touching = "".join(map(str, chat.assistant_open[ids[-1] + 1 if ids else 0 :]))
    text = "".join(_reply_parts(chat, reply))
    if not touching:
        return tokenizer.encode(text, before, chat.stop_token)
    head = tokenizer.encode(touching, before)
    whole = tokenizer.encode(touching + text, before, chat.stop_token)
    if whole[: len(head)] == head:
        return whole[len(head) :]
    # The reply's first characters merge with the text before it. The state stays what it was: a
    # prefix of what follows.
    return tokenizer.encode(text, before, chat.stop_token)


def observation_tokens(tokenizer: ChatTokenizer, observation: str) -> list[int]:
    """Returns what follows a reply's stop token, up to where the next reply begins."""
    chat = tokenizer.chat
    turn = _user_turn(chat, observation)
    parts = [*chat.assistant_close[1:], *turn, *chat.assistant_open]
    return tokens_of(tokenizer, parts, chat.stop_token)


def render(
    tokenizer: ChatTokenizer,
    prompt: Prompt | None,
    trajectory: Trajectory,
    limit: int | None = None,
    *,
    opening_limit: int | None = None,
    all_steps: bool = False,
) -> tuple[Rendered, int]:
    """Renders a trajectory as tokens.

    Args:
      limit: Most tokens of a state. A step that alone is longer is shortened, and so is a first
        observation that leaves no room for steps.
      opening_limit: The limit for which the first observation is shortened, if it is another one.
      all_steps: Whether steps are kept that do not fit together.

    Returns:
      The tokens, and how many of the oldest steps were left out to fit `limit`.
    """
    tokens = instruction_tokens(tokenizer, prompt)
    first, shortened = fit_first_observation(
        trajectory.first_observation,
        len(tokens),
        opening_limit or limit,
        lambda text: first_observation_tokens(tokenizer, text, prompt),
    )
    tokens.extend(first)
    room = None if limit is None else limit - len(tokens)
    steps = [_fitted_step(tokenizer, step, room) for step in trajectory.steps]
    dropped = 0
    if room is not None and not all_steps:
        dropped = first_steps([step.length for step in steps], room)[-1]
    spans, action_ends, state_ends = [], [], [len(tokens) - 1]
    for step in steps[dropped:]:
        end = len(tokens) + len(step.reply)
        spans.append((end if step.reply_shortened else len(tokens), end))
        action_ends.append(end - 1)
        tokens.extend(step.reply)
        tokens.extend(step.observation)
        state_ends.append(len(tokens) - 1)
    rendered = Rendered(
        tokens=np.asarray(tokens, np.int32),
        reply_spans=tuple(spans),
        action_ends=tuple(action_ends),
        state_ends=tuple(state_ends),
        shortened=shortened + sum(step.shortened for step in steps[dropped:]),
    )
    return rendered, dropped


def _fitted_step(tokenizer: ChatTokenizer, step: Step, room: int | None) -> FittedStep:
    """Returns the tokens of a step; nothing follows the stop token if nobody has answered it."""

    def answer_tokens(text: str) -> list[int]:
        return observation_tokens(tokenizer, text) if step.answered else []

    return fit_step(
        (step.reply, reply_tokens(tokenizer, step.reply, step.token_ids)),
        (step.transition.observation, answer_tokens(step.transition.observation)),
        room,
        lambda text: reply_tokens(tokenizer, text),
        answer_tokens,
    )
