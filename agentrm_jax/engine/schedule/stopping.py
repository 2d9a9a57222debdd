"""When a reply is over: told by token on the device, and by text on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """What ends a reply.

    Attributes:
      tokens: They end it and do not belong to it: ends of text and all other control tokens, so
        that no reply holds one. In a conversation the first stands after every reply.
      halting: Tokens whose own text contains a stop string: decoding stops behind them, and `cut`
        says what stays.
      cut: (tokens of a reply) to how many of them stand before a stop string, or None without one.
    """

    tokens: tuple[int, ...]
    halting: tuple[int, ...] = ()
    cut: Callable[[Sequence[int]], int | None] | None = None

    def ends(self, vocab_size: int) -> np.ndarray:
        """[V] bool, the tokens after which decoding stops."""
        found = np.zeros(vocab_size, bool)
        found[[t for t in (*self.tokens, *self.halting) if 0 <= t < vocab_size]] = True
        return found

    def kept(self, tokens: Sequence[int]) -> int | None:
        """How many tokens belong to the reply, or None where it is not over."""
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
    """Returns what ends replies: stop tokens, and strings that stand after them.

    The tokens that stand wholly before the string are kept: a token that holds its beginning and
    other text goes with it.

    Args:
      stops: The tokens that end a reply, the chat's own first.
      decode: Tokens to text.
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
        at = min((place for s in strings if (place := text.find(s)) >= 0), default=None)
        if at is None:
            return None
        kept = len(tokens)
        while kept and len(decode(tokens[:kept])) > at:
            kept -= 1
        return kept

    return Stopping(tokens=tuple(stops), halting=halting, cut=cut)
