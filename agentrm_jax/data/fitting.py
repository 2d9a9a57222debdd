"""Fits conversations into a context: whole steps, and both ends of a text that is too long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

Encode = Callable[[str], Sequence[int]]

_MARK = " ... [{} tokens left out] ... "
_LEAST_FOR_STEPS = 8  # an eighth of a state's tokens


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FittedStep:
    """The tokens of a step that fits into a context.

    Attributes:
      reply: With the stop token.
      observation: Up to where the next reply begins.
      shortened: Whether the observation or the reply lost its middle.
      reply_shortened: Whether the reply did.
    """

    reply: Sequence[int]
    observation: Sequence[int]
    shortened: bool = False
    reply_shortened: bool = False

    @property
    def length(self) -> int:
        return len(self.reply) + len(self.observation)


def fit_step(
    reply: tuple[str, Sequence[int]],
    observation: tuple[str, Sequence[int]],
    room: int | None,
    encode_reply: Encode,
    encode_observation: Encode,
) -> FittedStep:
    """Returns a step of at most `room` tokens, if that is possible.

    The middle of the observation is left out, and of the reply only if it leaves no room for an
    observation.

    Args:
      reply: Its text and its tokens.
      observation: Its text and its tokens.
      room: None does not limit the step.
      encode_reply: The tokens of a reply, those around it included.
      encode_observation: The same of an observation.
    """
    (reply_text, replied), (observation_text, observed) = reply, observation
    if room is None or len(replied) + len(observed) <= room:
        return FittedStep(reply=replied, observation=observed)
    least = min(len(encode_observation(_MARK.format(len(observed)))), len(observed))
    cut = len(replied) + least > room
    if cut:
        share = min(room - least, max(room // 2, room - len(observed)))
        replied = _without_middle(reply_text, len(replied), share, encode_reply)
    left = room - len(replied)
    if len(observed) > left:
        observed = _without_middle(observation_text, len(observed), left, encode_observation)
    return FittedStep(reply=replied, observation=observed, shortened=True, reply_shortened=cut)


def fit_first_observation(
    text: str, before: int, limit: int | None, encode: Encode
) -> tuple[Sequence[int], bool]:
    """Returns the tokens of a first observation, and whether it lost its middle.

    It does if it would leave less than an eighth of a state for steps.

    Args:
      text: The first observation.
      before: Tokens of the instruction before it.
      limit: Most tokens of a state; None does not limit it.
      encode: The tokens of a first observation, those around it included.
    """
    tokens = encode(text)
    if limit is None or len(tokens) <= (room := limit - limit // _LEAST_FOR_STEPS - before):
        return tokens, False
    return _without_middle(text, len(tokens), room, encode), True


def _without_middle(text: str, total: int, room: int, encode: Encode) -> Sequence[int]:
    """The tokens of a text of `total` tokens without its middle: as much of both ends as fits into
    `room` tokens; of the empty text if not even the mark does."""
    around = len(encode(""))

    def keeping(count: int) -> Sequence[int]:
        head, tail = text[: count - count // 2], text[len(text) - count // 2 :]
        missing = total - len(encode(head)) - len(encode(tail)) + around
        return encode(head + _MARK.format(max(missing, 1)) + tail)

    fewest, most = 0, min(len(text), 16 * max(room, 0))  # few tokens are longer
    while fewest < most:
        middle = (fewest + most + 1) // 2
        fits = len(keeping(middle)) <= room
        fewest, most = (middle, most) if fits else (fewest, middle - 1)
    found = keeping(fewest)
    return found if len(found) <= room else encode("")


def first_steps(lengths: Sequence[int], room: int) -> list[int]:
    """The first step that each state keeps, the state before any step included.

    If a new step makes the kept ones longer than the room, the oldest are left out until half of
    the room is free: the rest can then be continued for some steps before it has to be read again
    from its beginning.

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
