"""The prefix cache: which pages hold which tokens, as a tree of segments on the host.

Sequences with a common prefix share the nodes of their common segments. If the pool is full, the
least recently used pages are evicted; their tokens are read again when they are needed. A segment
always starts a page and is always read in the same chunks, so that reading it again gives the same
keys and values, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache.pages import PAGE_BLOCK
from agentrm_jax.engine.request import Tokens, TokenSequence


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """One segment after a given prefix.

    Attributes:
      parent: The segment before it, or None.
      tokens: int32 [length].
      start: Position of its first token.
      children: The segments that follow it, by the bytes of their tokens.
      pages: Its pages in the pool; empty if it is not in the pool.
      chunks_read: The number of its chunks that are in the pool.
      last_used: When a call last needed it, on the cache's clock.
      pins: The number of running requests that need it; a pinned node is not evicted.
      prefix_id: Its number, if it is a shared prefix.
      readout: The model's readout at its last token, for models that score.
    """

    parent: Node | None
    tokens: Tokens
    start: int
    children: dict[bytes, Node] = dataclasses.field(default_factory=dict)
    pages: list[int] = dataclasses.field(default_factory=list)
    chunks_read: int = 0
    last_used: int = 0
    pins: int = 0
    prefix_id: int | None = None
    readout: float | None = None

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)

    @property
    def score(self) -> float:
        """The readout, which must be there."""
        assert self.readout is not None, "read by an engine without a readout"
        return self.readout

    def path(self) -> list[Node]:
        """Returns the nodes from the sequence's beginning to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixCache:
    """The nodes and the free pages of one pool.

    Args:
      num_pages: Pages of the pool.
      page_size: Tokens of a page.
      chunk_tokens: Tokens of a prefill chunk; a multiple of `page_size`.
      shared_pages: Most pages of all shared prefixes, each rounded up to blocks of `PAGE_BLOCK`.
    """

    def __init__(
        self, *, num_pages: int, page_size: int, chunk_tokens: int, shared_pages: int = 0
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.chunk_tokens = chunk_tokens
        self._roots: dict[bytes, Node] = {}
        self._free = list(range(num_pages - 1, -1, -1))
        self._resident: set[Node] = set()
        self._clock = 0
        self._num_shared = 0
        self._free_shared_blocks = shared_pages // PAGE_BLOCK

    def find(self, sequence: TokenSequence) -> Node:
        """Returns the node of a sequence's last segment; new segments are added, not yet read.

        Raises:
          ValueError: The sequence has no segment.
        """
        node: Node | None = None
        for tokens in sequence.segments:
            node = self._child(node, tokens)
            if node.parent is None and sequence.shared_prefix:
                self._share(node)
        if node is None:
            raise ValueError("a sequence must have at least one segment")
        return node

    def _child(self, parent: Node | None, tokens: Tokens) -> Node:
        siblings = self._roots if parent is None else parent.children
        key = tokens.tobytes()
        node = siblings.get(key)
        if node is None:
            start = 0 if parent is None else parent.end
            node = siblings[key] = Node(parent=parent, tokens=tokens, start=start)
        return node

    def _share(self, root: Node) -> None:
        """Makes a root a shared prefix if the table of shared prefixes has room for it."""
        blocks = -(-len(root.tokens) // (self.page_size * PAGE_BLOCK))
        if root.prefix_id is None and blocks <= self._free_shared_blocks:
            root.prefix_id = self._num_shared
            self._num_shared += 1
            self._free_shared_blocks -= blocks

    def num_chunks(self, node: Node) -> int:
        """Returns the number of prefill chunks of a node."""
        return -(-len(node.tokens) // self.chunk_tokens)

    def next_chunk(self, node: Node) -> Tokens:
        """Returns the tokens of the first chunk that is not in the pool."""
        return node.tokens[node.chunks_read * self.chunk_tokens :][: self.chunk_tokens]

    def num_pages_of(self, node: Node) -> int:
        """Returns the number of pages that a node's tokens take."""
        return -(-len(node.tokens) // self.page_size)

    def missing(self, leaves: Iterable[Node]) -> list[Node]:
        """Returns the nodes on the paths to the leaves that are not completely read.

        Each of them once, parents first.
        """
        missing: dict[Node, None] = {}
        for leaf in leaves:
            for node in leaf.path():
                if node.chunks_read < self.num_chunks(node):
                    missing.setdefault(node)
        return list(missing)

    def reserve(self, leaves: Sequence[Node], more: int = 0) -> bool:
        """Gives pages to all nodes on the paths to the leaves, evicting what is used least.

        Args:
          leaves: The last nodes of some sequences.
          more: Further free pages that must be there afterwards.

        Returns:
          False if too many pages are pinned.

        Raises:
          UserError: The pool cannot hold these sequences at the same time.
        """
        self._clock += 1
        needed: dict[Node, int] = {}
        total = more
        for leaf in leaves:
            for node in leaf.path():
                if node.last_used == self._clock:
                    continue
                node.last_used = self._clock
                count = self.num_pages_of(node)
                total += count
                if not node.pages:
                    needed[node] = count
        if total > self.num_pages:
            raise UserError(
                f"must be at least {total * self.page_size} for the sequences of one call",
                field="engine.cache_tokens",
                value=self.num_pages * self.page_size,
            )
        if not self._evict(sum(needed.values()) + more):
            return False
        for node, count in needed.items():
            node.pages = self.allocate(count)
            self._resident.add(node)
        return True

    def pin(self, leaf: Node, count: int) -> None:
        """Adds `count` (1 or -1) to the pins of all nodes on the path to the leaf."""
        for node in leaf.path():
            node.pins += count

    def allocate(self, count: int) -> list[int]:
        """Takes free pages, which must be there."""
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: Iterable[int]) -> None:
        """Returns pages to the free pages."""
        self._free.extend(pages)

    def insert(self, parent: Node | None, tokens: Tokens, pages: list[int]) -> None:
        """Adds a segment whose keys and values are in `pages`; frees them if it is resident."""
        node = self._child(parent, tokens)
        if node.pages:
            self.free(pages)
            return
        node.pages, node.chunks_read = pages, self.num_chunks(node)
        self._resident.add(node)
        for before in node.path():
            before.last_used = self._clock

    def _evict(self, pages: int) -> bool:
        """Makes at least `pages` pages free, if possible; nodes of the current call stay.

        Of nodes that were last used at the same time, the later segment is evicted first, so that
        a resident node always has its whole prefix in the pool. Else a segment could be read while
        its prefix is incomplete.
        """
        if pages <= len(self._free):
            return True
        goal = max(pages, self.num_pages // 8)  # some more, so that the next call need not sort
        for node in sorted(self._resident, key=lambda node: (node.last_used, -node.start)):
            if len(self._free) >= goal or node.last_used == self._clock:
                break
            if node.pins:
                continue
            self.free(node.pages)
            node.pages, node.chunks_read = [], 0
            self._resident.discard(node)
            self._remove_empty(node)
        return pages <= len(self._free)

    def _remove_empty(self, node: Node | None) -> None:
        """Removes a node without pages, children and pins, and then its parent if it is empty."""
        while node is not None and not node.children and not node.pages and not node.pins:
            if node.prefix_id is not None:
                return
            siblings = self._roots if node.parent is None else node.parent.children
            key = node.tokens.tobytes()
            if siblings.get(key) is node:
                del siblings[key]
            node = node.parent

    def pages_before(self, leaf: Node | None, end: int) -> tuple[list[int], list[int]]:
        """Returns the pages and fills of a sequence's tokens before position `end`.

        The pages of its shared prefix are not among them.
        """
        pages: list[int] = []
        fills: list[int] = []
        for node in leaf.path() if leaf is not None else []:
            if node.prefix_id is not None and end >= node.end:
                continue
            for number, page in enumerate(node.pages):
                first = node.start + number * self.page_size
                fill = min(self.page_size, node.end - first, end - first)
                if fill > 0:
                    pages.append(page)
                    fills.append(fill)
        return pages, fills
