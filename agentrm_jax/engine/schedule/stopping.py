"""When a reply ends: by token on the device, by stop strings on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """The tokens and strings that end a reply.

    Attributes:
      tokens: Tokens that end a reply and are not part of it: ends of text and all other control
        tokens, so that no reply contains one. In a sequence the first follows every reply.
      halting: Tokens whose own text contains a stop string: decoding stops after them, and `cut`
        gives the length of the reply.
      cut: (tokens of a reply) to the number of tokens before a stop string, or None without one.
    """

    tokens: tuple[int, ...]
    halting: tuple[int, ...] = ()
    cut: Callable[[Sequence[int]], int | None] | None = None

    def ends(self, vocab_size: int) -> np.ndarray:
        """Returns the tokens after which decoding stops: [V] bool."""
        ends = np.zeros(vocab_size, bool)
        ends[[t for t in (*self.tokens, *self.halting) if 0 <= t < vocab_size]] = True
        return ends

    def reply_length(self, tokens: Sequence[int]) -> int | None:
        """Returns the number of tokens of the reply, or None if it has not ended."""
        before = len(tokens) - 1 if tokens and tokens[-1] in self.tokens else None
        if self.cut is None:
            return before
        cut = self.cut(tokens if before is None else tokens[:before])
        return before if cut is None else cut


def stopping_at(
    strings: Sequence[str],
    stops: Sequence[int],
    vocab_size: int,
    decode: Callable[[Sequence[int]], str],
) -> Stopping:
    """Returns the stopping rule for stop tokens and stop strings.

    A reply keeps the tokens that lie completely before the string: a token that contains other text
    and the beginning of the string is cut off.

    Args:
      strings: The stop strings.
      stops: The tokens that end a reply, the chat format's own first.
      vocab_size: The number of tokens V.
      decode: Tokens to text.

    Raises:
      UserError: A string is empty.
    """
    if not all(strings):
        raise UserError("stop_strings: an empty string would end every reply at once")
    if not strings:
        return Stopping(tokens=tuple(stops))
    halting = tuple(
        t for t in range(vocab_size) if t not in stops and any(s in decode([t]) for s in strings)
    )

    def cut(tokens: Sequence[int]) -> int | None:
        text = decode(tokens)
        at = min((start for s in strings if (start := text.find(s)) >= 0), default=None)
        if at is None:
            return None
        kept = len(tokens)
        while kept and len(decode(tokens[:kept])) > at:
            kept -= 1
        return kept

    return Stopping(tokens=tuple(stops), halting=halting, cut=cut)
