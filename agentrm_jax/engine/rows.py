"""The rows of a batch: what compiled programs take and return.

R rows, G sequences, T tokens of a row, V tokens in the vocabulary.
"""

from __future__ import annotations

import flax.struct

from agentrm_jax.engine.cache.pages import Array, Context, PageTable


@flax.struct.dataclass
class PrefillRows:
    """New tokens for R rows; unused rows have length 0.

    G divides R: the rows r of a sequence g = r // (R / G) follow the same context and are siblings.

    Attributes:
      tokens: [R, T] int32; or packed into B bins, [B, N]: the tokens of R / B rows one after the
        other, then padding.
      lengths: [R] int32, the number of tokens of each row: at most T, and N for a bin.
      starts: [G] int32, the position of the first token: the length of the context.
      context: The page tables of the G sequences.
      pages: [R, T / page_size] int32, the pages to write; numbers beyond the pool are not written.
        If rows are packed, their width gives T.
    """

    tokens: Array
    lengths: Array
    starts: Array
    context: Context
    pages: Array

    def most_tokens(self, page_size: int) -> int:
        """Returns T, the most tokens of a row."""
        if self.tokens.shape[0] == self.lengths.shape[0]:
            return self.tokens.shape[1]
        return self.pages.shape[1] * page_size


@flax.struct.dataclass
class DecodeRows:
    """R rows to continue; each is one branch of a sequence.

    Sequences stand in groups by their number of branches n. A sequence has n slots, one for each
    branch. With several groups there are fewer rows than slots: a finished branch keeps its slot
    and gives its row to another sequence.

    Attributes:
      contexts: For each group, the page tables of its sequences, without what their rows have
        decoded; all with the same shared prefixes, those of all groups.
      slots: [D, R / D] int32, the slot of each row among the S / D of its device, group by group
        and sequence by sequence; S / D for padding. None if row r has slot r.
      tails: Page table of what each row has decoded in earlier calls, or None if there is none.
      last_tokens: [R] int32, the token before the next one: the first that decoding reads.
      positions: [R] int32, the position of that token.
      offsets: [R] int32, the number of tokens of the reply so far.
      keys: [R, 2] uint32, random key data of each row's sequence.
      branches: [R] int32, the branch of the sequence.
      temperature: [R] float32; 0 is greedy.
      limits: [R] int32, most tokens of the reply.
      active: [R] bool; false for padding.
      ends: [V] bool, the tokens that end a reply.
    """

    contexts: tuple[Context, ...]
    slots: Array | None
    tails: PageTable | None
    last_tokens: Array
    positions: Array
    offsets: Array
    keys: Array
    branches: Array
    temperature: Array
    limits: Array
    active: Array
    ends: Array


@flax.struct.dataclass
class Decoded:
    """The tokens that a call decoded.

    Attributes:
      tokens: [R, T] int32, with the token that ended the reply; 0 after the end.
      log_probs: [R, T] float32 at temperature 1.
      lengths: [R] int32, the number of tokens. As many were read: the row's last token first, and
        not the last decoded one.
      ended: [R] bool, whether the last token ends the reply.
    """

    tokens: Array
    log_probs: Array
    lengths: Array
    ended: Array
