"""The engine: one model, its page pool, and batched generation and scoring over them.

Tokens in, tokens out. Requests name a whole conversation as pieces of tokens; what the model has
already read is found in the prefix cache. All shapes are fixed, so a handful of compiled programs
serves everything and a request's answer does not depend on what else is in its batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.engine.attention import pallas as paged_attention
from agentrm_jax.engine.attention import tiles as tile_lists
from agentrm_jax.engine.cache.memory import check_memory, free_tokens
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool, commit, make_pool
from agentrm_jax.engine.cache.prefix_cache import Entry, Piece, PrefixCache
from agentrm_jax.engine.programs.prefill import CHUNK, ExtendRows, extend
from agentrm_jax.engine.schedule.batch import block_shape, seat_pieces, sibling_groups
from agentrm_jax.model import llama, panels
from agentrm_jax.model.attention import BACKENDS, check_device
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.sharding import named_sharding

TILE = 64
"""Tokens that decoding reads as one tile. CPUs multiply 64 columns without copying them first."""

_MAY_BE_ZERO = ("cache_tokens", "extend_batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine: but for `context` they decide memory and speed, no results.

    Those are equal to the bit at equal sizes, across sizes but for near-ties of the logits.

    Attributes:
      context: Longest conversation, in tokens, the reply to come included.
      decode_rows: Replies decoded at once, about (`seating.Seating.of`).
      decode_tokens: Tokens decoded before rows that are done make room for others; a multiple of
        `page_size`.
      extend_rows: Most pieces read at once.
      extend_tokens: Most tokens of a piece read at once; a multiple of `page_size`.
      extend_batch: Tokens read at once, of all pieces together: most are shorter than
        `extend_tokens`, and are packed; a multiple of `page_size`. 0: half of what the rows could
        hold.
      siblings: Pieces behind the same conversation that are read together: 1 for a policy, a beam's
        candidates for a reward model. It divides `extend_rows`.
      page_size: Tokens of a page.
      cache_tokens: Tokens that the page pool holds; 0 takes most of the free memory.
      max_pieces: Most pieces of a conversation.
      instruction_tokens: Most tokens of all instructions that are shared.
      attention: What computes attention: `xla` everywhere; `pallas` on TPUs; `cudnn` on NVIDIA GPUs
        where pieces are read (it rounds to bfloat16), decoding is as with `xla`. Results differ
        in rounding.
    """

    context: int = 2048
    decode_rows: int = 64
    decode_tokens: int = 16
    extend_rows: int = 32
    extend_tokens: int = 64
    extend_batch: int = 0
    siblings: int = 1
    page_size: int = 16
    cache_tokens: int = 0
    max_pieces: int = 160
    instruction_tokens: int = 4096
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, BACKENDS)
        sizes = [f.name for f in dataclasses.fields(self) if f.name != "attention"]
        least = {name: "[0, inf)" if name in _MAY_BE_ZERO else "[1, inf)" for name in sizes}
        check_fields(self, **least)
        for name in ("extend_tokens", "extend_batch", "decode_tokens"):
            if getattr(self, name) % self.page_size:
                raise UserError(
                    field=name,
                    value=getattr(self, name),
                    expected=f"a multiple of page_size, {self.page_size}",
                )
        if self.extend_rows % self.siblings:
            raise UserError(
                f"must divide extend_rows, {self.extend_rows}",
                field="siblings",
                value=self.siblings,
            )


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
      sizes: Sizes.
      readout: For models that score: (head, hidden states [R, D]) to [R] float32.
      head: What the readout needs besides.
      mesh: Where the parameters are sharded, or None.
    """

    def __init__(
        self,
        params,
        config: LlamaConfig,
        sizes: EngineConfig,
        *,
        readout: Callable[[Any, jax.Array], jax.Array] | None = None,
        head: Any = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        config.check_length("engine.context", sizes.context)
        check_device("engine.attention", sizes.attention, mesh)
        if sizes.attention == "pallas":
            paged_attention.check_shapes(config, sizes.page_size)
        self.config, self.sizes, self._mesh = config, sizes, mesh
        page_size = sizes.page_size
        dtype = params["embed"].dtype
        self._check_memory(dtype)
        num_pages = -(-(sizes.cache_tokens or free_tokens(config, dtype, mesh)) // page_size)
        self.params, self.pool = self._on_device(params, num_pages)
        self.cache = PrefixCache(
            num_pages=num_pages, page_size=page_size, portion=sizes.extend_tokens
        )
        self.usage = Usage()
        self.readout, self.head = readout, head
        most_pages = -(-sizes.context // page_size) + sizes.max_pieces
        self.tile = max(1, TILE // page_size)
        step = math.lcm(self.tile, CHUNK)
        self._width = -(-most_pages // step) * step  # of page tables
        self._instruction_pages = -(-sizes.instruction_tokens // (page_size * CHUNK)) * CHUNK
        self._blocks, self._block_tokens = block_shape(sizes, self.data)

    @classmethod
    def of(
        cls,
        params: Any,
        config: LlamaConfig,
        sizes: EngineConfig,
        *,
        mesh: jax.sharding.Mesh | None = None,
        readout: Callable[[Any, jax.Array], jax.Array] | None = None,
        head: Any = None,
    ) -> Engine:
        """Returns an engine that takes a model's parameters over.

        The stacked parameters are deleted as their unstacked copies are made, so that a device
        never holds both.

        Args:
          params: As training and checkpoints have them; not to be used afterwards.
          config: The shape of the model.
          sizes: The sizes of the engine.
          mesh: As of `Engine`, like `readout` and `head`.
        """
        own = llama.unstacked(params, consume=True)
        return cls(own, config, sizes, mesh=mesh, readout=readout, head=head)

    def _check_memory(self, dtype: Any) -> None:
        check_memory(self.config, self.sizes, dtype, self._mesh)

    def _on_device(self, params: Any, num_pages: int) -> tuple[Any, Pool]:
        """The parameters as the engine reads them, and an empty pool."""
        sizes, dtype = self.sizes, params["embed"].dtype
        pool = make_pool(
            self.config, num_pages, sizes.page_size, dtype, self._mesh, sizes.attention
        )
        return llama.unstacked(params), pool

    @property
    def data(self) -> int:
        """Over how many devices conversations are divided."""
        return 1 if self._mesh is None else self._mesh.shape["data"]

    @property
    def read_at_once(self) -> tuple[int, int]:
        """The shape of the tokens that are read at once: packed in blocks, or, where that would
        save nothing, in rows."""
        R, T = self.sizes.extend_rows, self.sizes.extend_tokens
        packed = self._block_tokens < R // self._blocks * T
        return (self._blocks, self._block_tokens) if packed else (R, T)

    @property
    def shares(self) -> tuple[float, ...]:
        """Decoding has a program for each: it reads as many tiles as there is room for, this share
        of what its places could hold (`tile_lists.shares`)."""
        return tile_lists.shares(self.pool.backend)

    def params_for(self, rows: int) -> Any:
        """The parameters that decoding so many rows reads."""
        return self._in_panels if rows <= panels.MOST else self.params

    @functools.cached_property
    def _in_panels(self) -> Any:
        """Another copy of the parameters, in panels; themselves where that is not faster."""
        embed = self.params["embed"]
        threads = int(os.environ.get("NPROC") or 0) or os.cpu_count()  # as XLA counts them
        on_one_cpu = [device.platform for device in embed.devices()] == ["cpu"] and threads == 1
        if not on_one_cpu or embed.dtype != np.float32:
            return self.params
        return panels.for_few_positions(self.params)

    def warm_up(self) -> None:
        """Compiles what reading needs, on rows of padding."""
        self._extend([])

    def score(self, conversations: Sequence[Sequence[Piece]]) -> list[float]:
        """The model's readout at the last token of each conversation."""
        leaves = [self.cache.find(pieces) for pieces in conversations]
        unread = [[leaf] for leaf in dict.fromkeys(leaves) if leaf.readout is None]
        for first, end in self.batches(unread, len(unread)):
            self.read([leaf for [leaf] in unread[first:end]])
        return [leaf.score for leaf in leaves]

    def batches(self, groups: Sequence[Sequence[Entry]], most: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most so many groups of conversations to read together: many, so that rows
        are full, but half of the pool."""
        first, pages = 0, 0
        held: set[Entry] = set()
        for g, group in enumerate(groups):
            own = {entry for leaf in group for entry in leaf.path()}
            needed = sum(self.cache.num_pages_of(entry) for entry in own - held)
            full = g - first == most or pages + needed > self.cache.num_pages // 2
            if g > first and full:
                yield first, g
                first, held, pages = g, set(), 0
                needed = sum(map(self.cache.num_pages_of, own))
            held |= own
            pages += needed
        if first < len(groups):
            yield first, len(groups)

    def read(self, leaves: Sequence[Entry]) -> None:
        """Makes the conversations' keys and values resident, reading what is missing."""
        if not self.cache.reserve(leaves):
            raise ValueError("pages are pinned by a decoder that is not done")
        self.read_reserved(leaves)

    def read_reserved(self, leaves: Sequence[Entry]) -> None:
        """The same for conversations that have their pages."""
        while ready := self.ready(leaves):
            self.read_ready(ready)

    def read_ready(self, ready: Sequence[Sequence[Entry]]) -> None:
        """Reads a portion of each entry, of as many as one call takes."""
        self._extend(ready[: self.num_fitting(ready)])

    def num_fitting(self, ready: Sequence[Sequence[Entry]]) -> int:
        """Of how many siblings one call reads a portion: of the first ones."""
        return len(self._seated(ready))

    def _seated(self, groups: Sequence[Sequence[Entry]]) -> list[int]:
        """The places of siblings in a call, of as many of the first ones as fit."""
        places = self.sizes.extend_rows // self.sizes.siblings // self._blocks
        lengths = (sum(len(self.cache.next_portion(e)) for e in group) for group in groups)
        return seat_pieces(lengths, self._blocks, places, self._block_tokens)

    def ready(self, leaves: Sequence[Entry], *, in_order: bool = False) -> list[list[Entry]]:
        """Which pieces of conversations could be read now, by siblings: what they follow is there.
        Empty when all is read. In the order of the conversations, or those first that follow
        least, so that a call reads behind conversations of equal length."""
        ready = [
            entry
            for entry in self.cache.missing(leaves)
            if entry.parent is None
            or entry.parent.portions_read == self.cache.portions(entry.parent)
        ]
        if not in_order:
            ready.sort(key=lambda entry: entry.start)
        return sibling_groups(ready, self.sizes.siblings)

    def completes(self, ready: Sequence[Sequence[Entry]], leaves: Sequence[Entry]) -> bool:
        """Whether one call that reads what is ready leaves nothing to read."""
        entries = {entry for group in ready for entry in group}
        return (
            len(ready) == self.num_fitting(ready)
            and entries == set(self.cache.missing(leaves))
            and all(e.portions_read + 1 == self.cache.portions(e) for e in entries)
        )

    def _extend(self, groups: Sequence[Sequence[Entry]]) -> None:
        """Reads the next portion of each entry: one call of the compiled programs."""
        rows = self.put(self.next_portions(groups))
        new, readouts = extend(
            self.params, self.config, self.pool, rows, self.head, readout=self.readout
        )
        self.pool = commit(self.pool, new, rows.pages)
        self.have_read(groups, readouts)

    def rows_of(self, groups: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, Entry]]:
        """Where `next_portions` puts each entry."""
        for place, group in zip(self._seated(groups), groups, strict=True):
            yield from enumerate(group, start=place * self.sizes.siblings)

    def next_portions(self, groups: Sequence[Sequence[Entry]]) -> ExtendRows:
        """What `extend` takes to read the next portion of each entry, on the host."""
        R, T, page_size = self.sizes.extend_rows, self.sizes.extend_tokens, self.sizes.page_size
        tokens, lengths = np.zeros(self.read_at_once, np.int32), np.zeros(R, np.int32)
        in_block = R // len(tokens)
        pages = np.full((R, T // page_size), self.cache.num_pages, np.int32)
        starts = np.zeros(R // self.sizes.siblings, np.int32)
        for row, entry in self.rows_of(groups):
            portion = self.cache.next_portion(entry)
            before = lengths[row - row % in_block : row].sum()
            tokens[row // in_block, before : before + len(portion)] = portion
            lengths[row] = len(portion)
            first = entry.portions_read * T // page_size
            own = entry.pages[first:][: -(-len(portion) // page_size)]
            pages[row, : len(own)] = own
        at = self._seated(groups)
        starts[at] = [g[0].start + g[0].portions_read * T for g in groups]
        beginnings = [(g[0], int(start)) for g, start in zip(groups, starts[at], strict=True)]
        context = self.context(beginnings, len(starts), at)
        return ExtendRows(
            tokens=tokens, lengths=lengths, starts=starts, context=context, pages=pages
        )

    def have_read(self, groups: Sequence[Sequence[Entry]], readouts: jax.Array | None) -> None:
        """Notes that the next portion of each entry has been read, and what was read out."""
        scores = None if readouts is None else np.asarray(readouts)
        for row, entry in list(self.rows_of(groups)):  # told by what is not read yet
            self.usage.read += len(self.cache.next_portion(entry))
            entry.portions_read += 1
            if scores is not None and entry.portions_read == self.cache.portions(entry):
                entry.readout = float(scores[row])

    def context(
        self, beginnings: Sequence[tuple[Entry | None, int]], places: int, at: Sequence[int]
    ) -> Context:
        """The pages of conversations up to the given positions, on the host.

        Args:
          beginnings: Each conversation and the position; at most `places`.
          at: The place of each among them.
        """
        return self.contexts([(beginnings, places, at)])[0]

    def contexts(
        self,
        groups: Sequence[tuple[Sequence[tuple[Entry | None, int]], int, Sequence[int]]],
    ) -> tuple[Context, ...]:
        """The same for several groups of conversations, with the instructions of all of them."""
        found: dict[int, Entry] = {}
        begin: list[np.ndarray] = []
        for beginnings, places, at in groups:
            begins_with = np.full(places, -1, np.int32)
            for place, (leaf, end) in zip(at, beginnings, strict=True):
                path = [] if leaf is None else leaf.path()
                if len(path) > self.sizes.max_pieces:
                    raise UserError(
                        f"must be at least {len(path)}, the pieces of a conversation",
                        field="engine.max_pieces",
                        value=self.sizes.max_pieces,
                    )
                first = path[0] if path else None
                if first is not None and first.instruction is not None and end >= first.end:
                    begins_with[place] = first.instruction
                    found[first.instruction] = first
            begin.append(begins_with)
        instructions, owners = self._instructions(found)
        prefixes = [[self.cache.prefix(*one) for one in beginnings] for beginnings, _, _ in groups]
        return tuple(
            Context(
                instructions=instructions,
                owners=owners,
                begins_with=begins_with,
                own=self._table(group, at, (places, self._width)),
            )
            for (_, places, at), begins_with, group in zip(groups, begin, prefixes, strict=True)
        )

    def tiles(self, contexts: Sequence[Context], share: float = 0.0) -> tuple[int, ...]:
        """How many tiles there is room for in each context: the least of `shares` that holds all.

        Args:
          contexts: On the host.
          share: What it must at least be.
        """
        lists = [tile_lists.num_lists(len(c.begins_with), self._mesh) for c in contexts]
        most = [c.own.fills.size // self.tile for c in contexts]
        needed = [
            tile_lists.num_tiles(context.own.fills, self.tile, n)
            for context, n in zip(contexts, lists, strict=True)
        ]

        def given(share: float) -> tuple[int, ...]:
            """For the longest conversation at least, and multiples of eight: vectors have ends
            elsewhere that are computed by other instructions, and a reply would depend on the
            program."""
            longest = self._width // self.tile
            return tuple(
                8 * n * math.ceil(max(share * m / n, longest) / 8)
                for m, n in zip(most, lists, strict=True)
            )

        every = (given(at_least) for at_least in self.shares if at_least >= share)
        return next(g for g in every if all(a <= b for a, b in zip(needed, g, strict=True)))

    def share(self, instruction: Piece | None) -> None:
        """Makes a piece an instruction, as long as there is room for more: conversations that begin
        with it read it together. It must be told before the first of them."""
        if instruction is not None:
            self.cache.share(instruction, self._instruction_pages // CHUNK, CHUNK)

    def _instructions(self, found: dict[int, Entry]) -> tuple[PageTable, np.ndarray]:
        """The instructions of a batch, each from the beginning of a chunk."""
        S = self._instruction_pages
        pages, fills = np.zeros((1, S), np.int32), np.zeros((1, S), np.int32)
        owners = np.full(S, -1, np.int32)
        first = 0
        for number, entry in sorted(found.items()):
            count = len(entry.pages)
            pages[0, first : first + count] = entry.pages
            fills[0, first : first + count] = self.sizes.page_size
            fills[0, first + count - 1] -= -len(entry.tokens) % self.sizes.page_size
            owners[first : first + count] = number
            first += -(-count // CHUNK) * CHUNK
        return PageTable(pages=pages, fills=fills), owners

    def _table(
        self,
        listed: Sequence[tuple[list[int], list[int]]],
        at: Sequence[int],
        shape: tuple[int, int],
    ) -> PageTable:
        pages, fills = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for place, (own, fill) in zip(at, listed, strict=True):
            pages[place, : len(own)], fills[place, : len(fill)] = own, fill
        return PageTable(pages=pages, fills=fills)

    def put(self, rows):
        """Host arrays onto the device, in one transfer; rows and conversations over `data`."""
        if self._mesh is None:
            return jax.device_put(rows)
        return jax.device_put(rows, self.shardings(rows, self._mesh))

    @staticmethod
    def shardings(rows: Any, mesh: jax.sharding.Mesh) -> Any:
        """Where `put` puts each array."""
        data = mesh.shape["data"]

        def sharding(x: np.ndarray) -> jax.sharding.NamedSharding:
            axes: list[str | None] = [None] * x.ndim
            if x.ndim and x.shape[0] % data == 0:
                axes[0] = "rows"
            return named_sharding(mesh, tuple(axes))

        return jax.tree.map(sharding, rows)
