"""The input and the output of the engine: token sequences, requests and replies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

Tokens = np.ndarray
"""int32 [length] token ids, at least one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """A sequence of tokens, cut into segments that the prefix cache stores.

    Sequences that begin with equal segments share the pages of these segments.

    Attributes:
      segments: int32 [length] each: for example the instruction, the first observation, then one
        segment for each step.
      shared_prefix: Whether many sequences begin with the first segment, as with an instruction: a
        batch reads it once for all of them.
    """

    segments: Sequence[Tokens]
    shared_prefix: bool = False

    @property
    def length(self) -> int:
        """The number of tokens."""
        return sum(map(len, self.segments))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request(TokenSequence):
    """A sequence to continue.

    If a segment begins at the last token before each reply, the tokens that were decoded before
    are in the cache and are not computed again.

    Attributes:
      key: [2] uint32 random key data. Equal requests with equal keys get equal replies.
    """

    key: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One decoded reply.

    Attributes:
      tokens: The tokens before the one that ended the reply.
      log_probs: The log-probability of each token at temperature 1. If the reply was ended, one
        more: that of the token that ended it.
      stopped: Whether the model ended the reply, and not the length limit.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: bool
