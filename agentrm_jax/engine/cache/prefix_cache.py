"""Which pages hold which text: a tree of the pieces that a model has read, on the host.

A conversation is a sequence of pieces of tokens (the prompt, the first observation, then one piece
for each step). Conversations that begin alike share the entries of their common pieces. Pages that
have not been used for longest are given up when the pool is full; their text is read again when it
is needed. A piece always starts a page and is always read in the same portions, so that reading it
again gives the same keys and values, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError

Piece = np.ndarray
"""int32 [T] tokens, at least one."""


@dataclasses.dataclass(eq=False, slots=True)
class Entry:
    """One piece behind a given beginning.

    Attributes:
      start: Position of its first token.
      pages: Where it is in the pool; empty when it is not there.
      portions_read: How many of its portions are in the pool.
      used: When it was last needed, on the cache's clock.
      pins: How many conversations that are being decoded need it; it stays as long.
      instruction: Its number, for a piece that many conversations begin with.
      readout: What the model said at its last token, for models that score.
    """

    parent: Entry | None
    tokens: Piece
    start: int
    children: dict[bytes, Entry] = dataclasses.field(default_factory=dict)
    pages: list[int] = dataclasses.field(default_factory=list)
    portions_read: int = 0
    used: int = 0
    pins: int = 0
    instruction: int | None = None
    readout: float | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def score(self) -> float:
        assert self.readout is not None, "read by an engine without a readout"
        return self.readout

    def path(self) -> list[Entry]:
        """The entries from the conversation's beginning to this one."""
        entries: list[Entry] = []
        entry: Entry | None = self
        while entry is not None:
            entries.append(entry)
            entry = entry.parent
        return entries[::-1]


class PrefixCache:
    """Entries and free pages of one pool.

    Args:
      num_pages: Pages of the pool.
      page_size: Tokens of a page.
      portion: Most tokens that one row of `extend` reads; a multiple of `page_size`.
    """

    def __init__(self, *, num_pages: int, page_size: int, portion: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.portion = portion
        self._roots: dict[bytes, Entry] = {}
        self._free = list(range(num_pages - 1, -1, -1))
        self._resident: set[Entry] = set()
        self._clock = 0
        self._num_instructions = 0
        self._instruction_chunks = 0

    def share(self, piece: Piece, most_chunks: int, chunk: int) -> None:
        """Makes a piece an instruction unless there are as many chunks of pages of them already."""
        entry = self.find([piece])
        chunks = -(-len(piece) // (self.page_size * chunk))
        if entry.instruction is None and self._instruction_chunks + chunks <= most_chunks:
            entry.instruction = self._num_instructions
            self._num_instructions += 1
            self._instruction_chunks += chunks

    def find(self, pieces: Sequence[Piece]) -> Entry:
        """The entry of a conversation's last piece; what is new is entered, not yet read."""
        entry: Entry | None = None
        for piece in pieces:
            siblings = self._roots if entry is None else entry.children
            key = piece.tobytes()
            found = siblings.get(key)
            if found is None:
                found = Entry(parent=entry, tokens=piece, start=0 if entry is None else entry.end)
                siblings[key] = found
            entry = found
        if entry is None:
            raise ValueError("a conversation has at least one piece")
        return entry

    def portions(self, entry: Entry) -> int:
        return -(-len(entry.tokens) // self.portion)

    def next_portion(self, entry: Entry) -> Piece:
        """What is to be read of an entry next."""
        return entry.tokens[entry.portions_read * self.portion :][: self.portion]

    def num_pages_of(self, entry: Entry) -> int:
        return -(-len(entry.tokens) // self.page_size)

    def missing(self, leaves: Iterable[Entry]) -> list[Entry]:
        """Entries on the way to the leaves that are not wholly read, each once, parents first."""
        found: dict[Entry, None] = {}
        for leaf in leaves:
            for entry in leaf.path():
                if entry.portions_read < self.portions(entry):
                    found.setdefault(entry)
        return list(found)

    def reserve(self, leaves: Sequence[Entry], more: int = 0) -> bool:
        """Finds pages for everything on the way to the leaves, giving up what is used least.

        Args:
          more: So many free pages are needed besides.

        Returns:
          Whether it could: not where too much is pinned.

        Raises:
          UserError: the pool cannot hold these conversations at once.
        """
        self._clock += 1
        needed: dict[Entry, int] = {}
        total = more
        for leaf in leaves:
            for entry in leaf.path():
                if entry.used == self._clock:
                    continue
                entry.used = self._clock
                count = self.num_pages_of(entry)
                total += count
                if not entry.pages:
                    needed[entry] = count
        if total > self.num_pages:
            raise UserError(
                f"must be at least {total * self.page_size} for the conversations of one call",
                field="engine.cache_tokens",
                value=self.num_pages * self.page_size,
            )
        if not self._evict(sum(needed.values()) + more):
            return False
        for entry, count in needed.items():
            entry.pages = self.take(count)
            self._resident.add(entry)
        return True

    def pin(self, leaf: Entry, by: int) -> None:
        """Keeps a conversation in the pool; with -1, no longer."""
        for entry in leaf.path():
            entry.pins += by

    def take(self, count: int) -> list[int]:
        """So many of the free pages, for what is being decoded."""
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Iterable[int]) -> None:
        """Pages that are needed no longer."""
        self._free.extend(pages)

    def adopt(self, parent: Entry | None, tokens: Piece, pages: list[int]) -> None:
        """Enters a piece that is in the pages already; they are freed where it was known."""
        siblings = self._roots if parent is None else parent.children
        entry = siblings.get(tokens.tobytes())
        if entry is None:
            start = 0 if parent is None else parent.end
            entry = siblings[tokens.tobytes()] = Entry(parent=parent, tokens=tokens, start=start)
        if entry.pages:
            self.give(pages)
            return
        entry.pages, entry.portions_read = pages, self.portions(entry)
        self._resident.add(entry)
        for own in entry.path():
            own.used = self._clock

    def _evict(self, pages: int) -> bool:
        """Makes at least `pages` pages free, if it can; what is in use on this clock stays.

        Among entries that were used last at the same time the later piece goes first: whatever is
        in the pool has its whole beginning there. Else a piece could be read while a part of its
        beginning was still to be read again.
        """
        if pages <= len(self._free):
            return True
        goal = max(pages, self.num_pages // 8)  # some more, so that the next call need not sort
        for entry in sorted(self._resident, key=lambda entry: (entry.used, -entry.start)):
            if len(self._free) >= goal or entry.used == self._clock:
                break
            if entry.pins:
                continue
            self.give(entry.pages)
            entry.pages, entry.portions_read = [], 0
            self._resident.discard(entry)
            self._forget(entry)
        return pages <= len(self._free)

    def _forget(self, entry: Entry | None) -> None:
        """Drops entries that hold nothing: no pages, no children."""
        while entry is not None and not entry.children and not entry.pages and not entry.pins:
            if entry.instruction is not None:
                return
            siblings = self._roots if entry.parent is None else entry.parent.children
            key = entry.tokens.tobytes()
            if siblings.get(key) is entry:
                del siblings[key]
            entry = entry.parent

    def prefix(self, leaf: Entry | None, end: int) -> tuple[list[int], list[int]]:
        """Pages and fills of the conversation's tokens before position `end`, its instruction
        left out."""
        pages: list[int] = []
        fills: list[int] = []
        for entry in leaf.path() if leaf is not None else []:
            if entry.instruction is not None and end >= entry.end:
                continue
            for number, page in enumerate(entry.pages):
                first = entry.start + number * self.page_size
                fill = min(self.page_size, entry.end - first, end - first)
                if fill > 0:
                    pages.append(page)
                    fills.append(fill)
        return pages, fills
