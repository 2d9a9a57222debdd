"""Chunked prefill on the host: which chunks one call reads, and in which rows.

A segment is read in chunks of `extend_tokens` tokens. A batch holds the next chunk of many
segments. Siblings (segments that follow the same node) stand side by side in a group, and short
chunks are packed into bins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from agentrm_jax.engine.cache.prefix_cache import Node, PrefixCache
from agentrm_jax.engine.cache.tables import PageTables, TableRows
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.programs.compiled import Programs
from agentrm_jax.engine.rows import PrefillRows

Group = Sequence[Node]
"""Siblings: nodes that follow the same pages, read side by side."""


@dataclasses.dataclass(slots=True)
class Usage:
    """The work of an engine.

    Attributes:
      decoded: Tokens decoded.
      read: Tokens read by prefill, without padding.
      seconds: Seconds in which the caller waited for the engine.
    """

    decoded: int = 0
    read: int = 0
    seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds of a block, in which the caller waits for the engine."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


class ChunkedPrefill:
    """Reads sequences into their pages, batch by batch.

    Args:
      cache: The prefix cache.
      tables: Its page tables.
      programs: The compiled programs.
      sizes: The sizes of the engine.
      usage: Counts the tokens read.
    """

    def __init__(
        self,
        cache: PrefixCache,
        tables: PageTables,
        programs: Programs,
        sizes: EngineConfig,
        usage: Usage,
    ) -> None:
        self._cache, self._tables, self._programs = cache, tables, programs
        self._sizes, self._usage = sizes, usage
        self._bins, self._bin_tokens = bin_shape(sizes, programs.data)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a batch's tokens: packed into bins or, if that saves nothing, in rows."""
        R, T = self._sizes.extend_rows, self._sizes.extend_tokens
        packed = self._bin_tokens < R // self._bins * T
        return (self._bins, self._bin_tokens) if packed else (R, T)

    def run(self, leaves: Sequence[Node]) -> None:
        """Reads everything on the paths to the leaves that is not in the pool.

        Raises:
          ValueError: Too many pages are pinned by requests that are being decoded.
        """
        if not self._cache.reserve(leaves):
            raise ValueError("the pages are pinned by a scheduler that is not done")
        while groups := self.ready(leaves):
            self.run_batch(groups)

    def run_batch(self, groups: Sequence[Group]) -> None:
        """Reads the next chunk of each node of the first groups, as many as fit into one call."""
        fitting = groups[: self.num_fitting(groups)]
        self.record(fitting, self._programs.prefill(self.rows(fitting)))

    def ready(self, leaves: Sequence[Node], *, in_order: bool = False) -> list[list[Node]]:
        """Returns the unread nodes whose prefix is read, in groups of siblings.

        Empty if everything is read.

        Args:
          leaves: The last nodes of some sequences; their pages are reserved.
          in_order: Whether groups keep the order of the leaves. By default nodes with the shortest
            prefix come first, so that a call reads after prefixes of similar length.
        """
        ready = [
            node
            for node in self._cache.missing(leaves)
            if node.parent is None or node.parent.chunks_read == self._cache.num_chunks(node.parent)
        ]
        if not in_order:
            ready.sort(key=lambda node: node.start)
        return sibling_groups(ready, self._sizes.siblings)

    def num_fitting(self, groups: Sequence[Group]) -> int:
        """Returns the number of groups, from the first, whose next chunks fit into one call."""
        return len(self._group_rows(groups))

    def completes(self, groups: Sequence[Group], leaves: Sequence[Node]) -> bool:
        """Returns whether one call that reads the groups leaves nothing of the leaves unread."""
        nodes = {node for group in groups for node in group}
        return (
            len(groups) == self.num_fitting(groups)
            and nodes == set(self._cache.missing(leaves))
            and all(n.chunks_read + 1 == self._cache.num_chunks(n) for n in nodes)
        )

    def batches(self, groups: Sequence[Group], most: int) -> Iterator[tuple[int, int]]:
        """Yields ranges of groups of leaves to read together.

        Ranges are long, so that rows are full, but need at most half of the pool.

        Args:
          groups: The last nodes of some sequences, in groups that stay together.
          most: Most groups of a range.
        """
        first, pages = 0, 0
        held: set[Node] = set()
        for g, group in enumerate(groups):
            nodes = {node for leaf in group for node in leaf.path()}
            needed = sum(self._cache.num_pages_of(node) for node in nodes - held)
            full = g - first == most or pages + needed > self._cache.num_pages // 2
            if g > first and full:
                yield first, g
                first, held, pages = g, set(), 0
                needed = sum(map(self._cache.num_pages_of, nodes))
            held |= nodes
            pages += needed
        if first < len(groups):
            yield first, len(groups)

    def _group_rows(self, groups: Sequence[Group]) -> list[int]:
        """The group numbers (rows divided by siblings) of as many groups as fit into a call."""
        groups_per_bin = self._sizes.extend_rows // self._sizes.siblings // self._bins
        lengths = (sum(len(self._cache.next_chunk(n)) for n in group) for group in groups)
        return pack_groups(lengths, self._bins, groups_per_bin, self._bin_tokens)

    def row_numbers(self, groups: Sequence[Group]) -> Iterator[tuple[int, Node]]:
        """Yields each node with its row in `rows`."""
        for number, group in zip(self._group_rows(groups), groups, strict=True):
            yield from enumerate(group, start=number * self._sizes.siblings)

    def rows(self, groups: Sequence[Group]) -> PrefillRows:
        """Returns the rows that read the next chunk of each node, on the host."""
        R, T, page_size = self._sizes.extend_rows, self._sizes.extend_tokens, self._sizes.page_size
        tokens, lengths = np.zeros(self.shape, np.int32), np.zeros(R, np.int32)
        in_bin = R // len(tokens)
        pages = np.full((R, T // page_size), self._cache.num_pages, np.int32)
        starts = np.zeros(R // self._sizes.siblings, np.int32)
        for row, node in self.row_numbers(groups):
            chunk = self._cache.next_chunk(node)
            before = lengths[row - row % in_bin : row].sum()
            tokens[row // in_bin, before : before + len(chunk)] = chunk
            lengths[row] = len(chunk)
            first = node.chunks_read * T // page_size
            own = node.pages[first:][: -(-len(chunk) // page_size)]
            pages[row, : len(own)] = own
        numbers = self._group_rows(groups)
        starts[numbers] = [g[0].start + g[0].chunks_read * T for g in groups]
        ends = [(g[0], int(start)) for g, start in zip(groups, starts[numbers], strict=True)]
        context = self._tables.context(TableRows(len(starts), numbers, ends))
        return PrefillRows(
            tokens=tokens, lengths=lengths, starts=starts, context=context, pages=pages
        )

    def record(self, groups: Sequence[Group], readouts: np.ndarray | None) -> None:
        """Marks the next chunk of each node as read.

        Args:
          groups: As given to `rows`.
          readouts: [R] float32 at each row's last token, or None.
        """
        for row, node in list(self.row_numbers(groups)):  # they depend on what is not read yet
            self._usage.read += len(self._cache.next_chunk(node))
            node.chunks_read += 1
            if readouts is not None and node.chunks_read == self._cache.num_chunks(node):
                node.readout = float(readouts[row])


def pack_groups(
    lengths: Iterable[int], bins: int, groups_per_bin: int, bin_tokens: int
) -> list[int]:
    """Packs groups into bins in their order, until one does not fit.

    Args:
      lengths: The tokens of each group; at most `bin_tokens`.
      bins: The number of bins.
      groups_per_bin: Most groups of a bin.
      bin_tokens: Most tokens of a bin.

    Returns:
      For each group that fits: bin * groups_per_bin + its index in the bin.
    """
    packed: list[int] = []
    number, count, tokens = 0, 0, 0
    for length in lengths:
        if count == groups_per_bin or tokens + length > bin_tokens:
            number, count, tokens = number + 1, 0, 0
        if number == bins:
            break
        packed.append(number * groups_per_bin + count)
        count, tokens = count + 1, tokens + length
    return packed


def sibling_groups(nodes: Iterable[Node], most: int) -> list[list[Node]]:
    """Groups nodes that follow the same pages, at most `most` in a group.

    A node of which a chunk is already read is a group of its own.
    """
    open_groups: dict[Node | None, list[Node]] = {}
    groups: list[list[Node]] = []
    for node in nodes:
        group = None if node.chunks_read else open_groups.get(node.parent)
        if group is None or len(group) == most:
            group = []
            groups.append(group)
            if not node.chunks_read:
                open_groups[node.parent] = group
        group.append(node)
    return groups


def bin_shape(sizes: EngineConfig, data: int) -> tuple[int, int]:
    """Returns the number of bins into which chunks are packed, and the tokens of a bin.

    There is a bin for each device if the devices have equally many rows. A group of siblings fits
    into a bin whatever its length.

    Args:
      sizes: The sizes of the engine.
      data: The number of devices over which sequences are divided.
    """
    T = sizes.extend_tokens
    bins = 1 if sizes.extend_rows // sizes.siblings % data else data
    batch = sizes.extend_batch or sizes.extend_rows * T // 2
    tokens = -(-batch // (bins * sizes.page_size)) * sizes.page_size
    return bins, max(sizes.siblings * T, tokens)
