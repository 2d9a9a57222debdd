"""The end of a reply: its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """The tokens that end a reply.

    Attributes:
      tokens: Tokens that end a reply and are not part of it: ends of text and all other control
        tokens, so that no reply contains one. In a sequence the first follows every reply.
    """

    tokens: tuple[int, ...]

    def ends(self, vocab_size: int) -> np.ndarray:
        """Returns the tokens after which decoding stops: [V] bool."""
        ends = np.zeros(vocab_size, bool)
        ends[[token for token in self.tokens if 0 <= token < vocab_size]] = True
        return ends

    def reply_length(self, tokens: Sequence[int]) -> int | None:
        """Returns the number of tokens of the reply, or None if it has not ended."""
        return len(tokens) - 1 if tokens and tokens[-1] in self.tokens else None
