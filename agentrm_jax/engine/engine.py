"""The engine: one model, its page pool, and batched generation and scoring over them.

Tokens in, tokens out. Requests name a whole conversation as pieces of tokens; what the model has
already read is found in the prefix cache. All shapes are fixed, so a handful of compiled programs
serves everything and a request's answer does not depend on what else is in its batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.decode import DecodeGroups, Replies, decode
from agentrm_jax.engine.extend import CHUNK, ExtendRows, extend
from agentrm_jax.engine.pages import PageTable, make_pool
from agentrm_jax.engine.prefix_cache import Entry, Piece, PrefixCache
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine. Beside `context` they decide memory and speed, never results: at equal
    sizes to the bit, across sizes but for near-ties of the logits.

    Attributes:
      context: Longest conversation, in tokens, the reply to come included.
      decode_rows: Replies decoded at once, about (`Engine.places`).
      extend_rows: Pieces read at once.
      extend_tokens: Most tokens of a piece read at once; a multiple of `page_size`.
      page_size: Tokens of a page.
      cache_tokens: Tokens that the page pool holds.
      max_pieces: Most pieces of a conversation.
    """

    context: int = 2048
    decode_rows: int = 64
    extend_rows: int = 32
    extend_tokens: int = 64
    page_size: int = 16
    cache_tokens: int = 131_072
    max_pieces: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(f"engine.{field.name}: must be at least 1")
        if self.extend_tokens % self.page_size:
            raise UserError(
                f"engine.extend_tokens: {self.extend_tokens} is no multiple of engine.page_size "
                f"({self.page_size})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A conversation to continue.

    Attributes:
      pieces: The conversation.
      key: [2] uint32 random key data. Equal requests with equal keys get equal replies.
    """

    pieces: Sequence[Piece]
    key: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One decoded reply.

    Attributes:
      tokens: Without the stop token.
      log_probs: Of each token, at temperature 1; one more, of the stop token, where it came.
      stopped: Whether the model ended it, rather than the length limit.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: bool


@dataclasses.dataclass(slots=True)
class Usage:
    """Tokens decoded and tokens read, padding not counted."""

    decoded: int = 0
    read: int = 0


class Engine:
    """A model with its page pool.

    Args:
      params: The model's parameters as `model.llama` reads them (a reward model's trunk as well).
      config: Its shape.
      engine_config: Sizes.
      readout: For models that score: (head, hidden states [R, D]) to [R] float32.
      head: What the readout needs besides.
      mesh: Where the parameters are sharded, or None.
    """

    def __init__(
        self,
        params,
        config: LlamaConfig,
        engine_config: EngineConfig,
        *,
        readout: Callable[[Any, jax.Array], jax.Array] | None = None,
        head: Any = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        if engine_config.context > config.max_positions:
            raise UserError(
                f"engine.context: {engine_config.context} tokens, but the model reads at most "
                f"{config.max_positions}"
            )
        self.params, self.config, self.sizes = params, config, engine_config
        page_size = engine_config.page_size
        num_pages = -(-engine_config.cache_tokens // page_size)
        dtype = params["embed"].dtype
        self.pool = make_pool(config, num_pages, page_size, dtype, mesh)
        self.cache = PrefixCache(
            num_pages=num_pages, page_size=page_size, portion=engine_config.extend_tokens
        )
        self.usage = Usage()
        self.readout, self.head = readout, head
        self._readout = None if readout is None else jax.jit(readout)
        most_pages = -(-engine_config.context // page_size) + engine_config.max_pieces
        # An eighth of the longest conversation, so that a program has at most eight chunks.
        self.chunk = max(2 * CHUNK, -(-most_pages // (8 * CHUNK)) * CHUNK)
        self._most_pages = -(-most_pages // self.chunk) * self.chunk

    def generate(
        self, requests: Sequence[Request], *, n: int, sampling: Sampling, stop: int
    ) -> list[list[Reply]]:
        """n replies to each request, in order; any number of requests."""
        slots = self.places(n)
        # A batch costs what its longest conversation does.
        order = sorted(range(len(requests)), key=lambda i: sum(map(len, requests[i].pieces)))
        replies: dict[int, list[Reply]] = {}
        for first in range(0, len(order), slots):
            numbers = order[first : first + slots]
            batch = [requests[i] for i in numbers]
            decoded = self._decode(batch, slots, n, sampling, stop)
            replies.update(zip(numbers, decoded, strict=True))
        return [replies[i] for i in range(len(requests))]

    def places(self, rows: int) -> int:
        """How many things of so many rows each are decoded at once.

        All rows together are a multiple of 8: the last rows of an odd number may be multiplied by
        another routine, whose rounding differs, and a reply would depend on its place.
        """
        step = 8 // math.gcd(rows, 8)
        return max(step, self.sizes.decode_rows // rows // step * step)

    def score(self, conversations: Sequence[Sequence[Piece]]) -> list[float]:
        """The model's readout at the last token of each conversation."""
        leaves = [self.cache.find(pieces) for pieces in conversations]
        for batch in self._batches([e for e in dict.fromkeys(leaves) if e.readout is None]):
            self.read(batch)
        return [leaf.score for leaf in leaves]

    def _batches(self, leaves: Sequence[Entry]) -> Iterator[list[Entry]]:
        """Conversations to read together: many, so that rows are full, but half of the pool."""
        batch: list[Entry] = []
        held = 0
        for leaf in leaves:
            tokens = leaf.end + len(leaf.path()) * self.sizes.page_size
            if batch and held + tokens > self.sizes.cache_tokens // 2:
                yield batch
                batch, held = [], 0
            batch.append(leaf)
            held += tokens
        if batch:
            yield batch

    def read(self, leaves: Sequence[Entry]) -> None:
        """Makes the conversations' keys and values resident, reading what is missing."""
        self.cache.reserve(leaves)
        missing = self.cache.missing(leaves)
        while missing:
            ready = [
                entry
                for entry in missing
                if entry.parent is None
                or entry.parent.portions_read == self.cache.portions(entry.parent)
            ]
            ready.sort(key=lambda entry: entry.start)
            for first in range(0, len(ready), self.sizes.extend_rows):
                self._extend(ready[first : first + self.sizes.extend_rows])
            missing = [e for e in missing if e.portions_read < self.cache.portions(e)]

    def _extend(self, entries: Sequence[Entry]) -> None:
        """Reads the next portion of each entry: one call of the compiled program."""
        R, T, page_size = self.sizes.extend_rows, self.sizes.extend_tokens, self.sizes.page_size
        tokens = np.zeros((R, T), np.int32)
        lengths, starts = np.zeros(R, np.int32), np.zeros(R, np.int32)
        pages = np.full((R, T // page_size), self.cache.num_pages, np.int32)
        for row, entry in enumerate(entries):
            offset = entry.portions_read * T
            portion = entry.tokens[offset : offset + T]
            tokens[row, : len(portion)] = portion
            lengths[row], starts[row] = len(portion), entry.start + offset
            own = entry.pages[offset // page_size : (offset + len(portion) - 1) // page_size + 1]
            pages[row, : len(own)] = own
        rows = ExtendRows(
            tokens=jnp.asarray(tokens),
            lengths=jnp.asarray(lengths),
            starts=jnp.asarray(starts),
            prefix=self._table(
                [(e, int(s)) for e, s in zip(entries, starts, strict=False)],
                range(len(entries)),
                R,
            ),
            pages=jnp.asarray(pages),
        )
        self.pool, hidden = extend(self.params, self.config, self.pool, rows)
        self.usage.read += int(lengths.sum())
        scores = None if self._readout is None else np.asarray(self._readout(self.head, hidden))
        for row, entry in enumerate(entries):
            entry.portions_read += 1
            if scores is not None and entry.portions_read == self.cache.portions(entry):
                entry.readout = float(scores[row])

    def _table(
        self, prefixes: Sequence[tuple[Entry, int]], places: Sequence[int], rows: int
    ) -> PageTable:
        """The pages of conversations up to the given positions; width as the longest needs."""
        listed = [self.cache.prefix(entry, end) for entry, end in prefixes]
        longest = max((len(pages) for pages, _ in listed), default=0)
        if longest > self._most_pages:
            raise UserError(
                f"engine.max_pieces: a conversation has more pieces than {self.sizes.max_pieces}"
            )
        width = min(self._most_pages, self._bucket(longest))
        pages, fills = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
        for row, (own, fill) in zip(places, listed, strict=True):
            pages[row, : len(own)], fills[row, : len(fill)] = own, fill
        return PageTable(pages=jnp.asarray(pages), fills=jnp.asarray(fills))

    def _bucket(self, pages: int) -> int:
        """A table width for so many pages. Chunks are the same in all, and so are results."""
        width = 4 * self.chunk  # narrower ones would save little and be compiled each
        return width if pages <= width else self._most_pages

    def groups(
        self,
        requests: Sequence[Request],
        places: Sequence[int],
        slots: int,
        sampling: Sampling,
        stop: int,
    ) -> DecodeGroups:
        """The requests as the compiled decoder takes them; their conversations are read first.

        Args:
          places: Each request's group number, below `slots`; the other groups are padding.
        """
        leaves = [self.cache.find(request.pieces) for request in requests]
        for leaf in leaves:
            if leaf.end + sampling.max_tokens > self.sizes.context:
                raise UserError(
                    f"engine.context: a conversation of {leaf.end} tokens and a reply of "
                    f"{sampling.max_tokens} do not fit into {self.sizes.context}"
                )
        self.read(leaves)
        last_tokens, last_positions = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
        keys, active = np.zeros((slots, 2), np.uint32), np.zeros(slots, bool)
        for g, request, leaf in zip(places, requests, leaves, strict=True):
            last_tokens[g], last_positions[g] = leaf.tokens[-1], leaf.end - 1
            keys[g], active[g] = request.key, True
        return DecodeGroups(
            prefix=self._table([(leaf, leaf.end - 1) for leaf in leaves], places, slots),
            last_tokens=jnp.asarray(last_tokens),
            last_positions=jnp.asarray(last_positions),
            keys=jnp.asarray(keys),
            temperature=jnp.full(slots, sampling.temperature, jnp.float32),
            active=jnp.asarray(active),
            stop=jnp.int32(stop),
            max_tokens=jnp.int32(sampling.max_tokens),
        )

    def whole_prefixes(
        self, requests: Sequence[Request], places: Sequence[int], slots: int
    ) -> PageTable:
        """The pages of the requests' conversations, read first; last token included."""
        leaves = [self.cache.find(request.pieces) for request in requests]
        self.read(leaves)
        return self._table([(leaf, leaf.end) for leaf in leaves], places, slots)

    def _decode(
        self, requests: Sequence[Request], slots: int, n: int, sampling: Sampling, stop: int
    ) -> list[list[Reply]]:
        groups = self.groups(requests, range(len(requests)), slots, sampling, stop)
        replies = decode(
            self.params,
            self.config,
            self.pool,
            groups,
            n=n,
            length=sampling.max_tokens,
            chunk=self.chunk,
            filter=sampling.filter,
        )
        out = as_replies(replies, len(requests))
        self.usage.decoded += sum(len(r.log_probs) for group in out for r in group)
        return out


def as_replies(replies: Replies, num_groups: int) -> list[list[Reply]]:
    """The first groups of decoded replies as records on the host."""
    host: Replies = jax.device_get(replies)
    out = []
    for g in range(num_groups):
        group = []
        for b in range(host.tokens.shape[1]):
            length, stopped = int(host.lengths[g, b]), bool(host.stopped[g, b])
            log_probs = host.log_probs[g, b, :length].tolist()
            if stopped:
                log_probs.append(float(host.stop_log_probs[g, b]))
            group.append(
                Reply(
                    tokens=tuple(host.tokens[g, b, :length].tolist()),
                    log_probs=tuple(log_probs),
                    stopped=stopped,
                )
            )
        out.append(group)
    return out
