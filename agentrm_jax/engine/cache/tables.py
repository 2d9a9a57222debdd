"""Page tables of a batch, built on the host from the prefix cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache.pages import PAGE_BLOCK, Context, PageTable
from agentrm_jax.engine.cache.prefix_cache import Node, PrefixCache
from agentrm_jax.engine.config import EngineConfig

TILE_TOKENS = 64
"""Tokens that decoding reads as one tile. CPUs multiply 64 columns without copying them first."""


class TableRows(NamedTuple):
    """Sequences and their rows in a page table.

    Attributes:
      num_rows: Rows of the table.
      rows: The row of each sequence; the other rows stay empty.
      ends: For each sequence its last node (None if it is empty) and the position before which
        its tokens are read.
    """

    num_rows: int
    rows: Sequence[int]
    ends: Sequence[tuple[Node | None, int]]


class PageTables:
    """Builds the page tables of a batch; all tables have the same width.

    Args:
      cache: The prefix cache.
      sizes: The sizes of the engine.

    Attributes:
      tile: Pages of a tile; divides the width of the tables.
    """

    def __init__(self, cache: PrefixCache, sizes: EngineConfig) -> None:
        self.cache, self._sizes = cache, sizes
        self.tile = max(1, TILE_TOKENS // sizes.page_size)
        step = math.lcm(self.tile, PAGE_BLOCK)
        most_pages = -(-sizes.context // sizes.page_size) + sizes.max_segments
        self._width = -(-most_pages // step) * step
        self._shared_pages = shared_pages(sizes)

    def context(self, rows: TableRows) -> Context:
        """Returns the context of one group of sequences, on the host."""
        return self.contexts([rows])[0]

    def contexts(self, groups: Sequence[TableRows]) -> tuple[Context, ...]:
        """Returns a context for each group; all hold the shared prefixes of all groups.

        Raises:
          UserError: A sequence has too many segments.
        """
        shared: dict[int, Node] = {}
        prefix_ids: list[np.ndarray] = []
        for group in groups:
            ids = np.full(group.num_rows, -1, np.int32)
            for row, (leaf, end) in zip(group.rows, group.ends, strict=True):
                root = self._root(leaf)
                if root is not None and root.prefix_id is not None and end >= root.end:
                    ids[row] = root.prefix_id
                    shared[root.prefix_id] = root
            prefix_ids.append(ids)
        table, shared_ids = self._shared_table(shared)
        return tuple(
            Context(shared=table, shared_ids=shared_ids, prefix_ids=ids, own=self._table(group))
            for group, ids in zip(groups, prefix_ids, strict=True)
        )

    def _root(self, leaf: Node | None) -> Node | None:
        path = [] if leaf is None else leaf.path()
        if len(path) > self._sizes.max_segments:
            raise UserError(
                f"must be at least {len(path)}, the segments of a sequence",
                field="engine.max_segments",
                value=self._sizes.max_segments,
            )
        return path[0] if path else None

    def _shared_table(self, shared: dict[int, Node]) -> tuple[PageTable, np.ndarray]:
        """The pages of the shared prefixes, each from the beginning of a block."""
        S, page_size = self._shared_pages, self._sizes.page_size
        pages, fills = np.zeros((1, S), np.int32), np.zeros((1, S), np.int32)
        ids = np.full(S, -1, np.int32)
        first = 0
        for number, node in sorted(shared.items()):
            count = len(node.pages)
            pages[0, first : first + count] = node.pages
            fills[0, first : first + count] = page_size
            fills[0, first + count - 1] -= -len(node.tokens) % page_size
            ids[first : first + count] = number
            first += -(-count // PAGE_BLOCK) * PAGE_BLOCK
        return PageTable(pages=pages, fills=fills), ids

    def _table(self, group: TableRows) -> PageTable:
        shape = (group.num_rows, self._width)
        pages, fills = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, (leaf, end) in zip(group.rows, group.ends, strict=True):
            own, fill = self.cache.pages_before(leaf, end)
            pages[row, : len(own)], fills[row, : len(fill)] = own, fill
        return PageTable(pages=pages, fills=fills)


def shared_pages(sizes: EngineConfig) -> int:
    """Returns the pages of the table of shared prefixes: a multiple of `PAGE_BLOCK`."""
    return -(-sizes.instruction_tokens // (sizes.page_size * PAGE_BLOCK)) * PAGE_BLOCK
