"""Where replies in the making stand in a call of the decoder, and pieces in one that reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from agentrm_jax.engine.cache.prefix_cache import Entry


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One decoded reply.

    Attributes:
      tokens: Without what ended it.
      log_probs: Of each token, at temperature 1; one more, of the token behind, where it was ended.
      stopped: Whether the model ended it, rather than the length limit.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: bool


@dataclasses.dataclass(slots=True)
class Row:
    """A reply in the making; `pages` hold what was read of it, the token before it first."""

    pages: list[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    kept: int | None = None
    done: bool = False

    def take(self, tokens: np.ndarray, log_probs: np.ndarray) -> None:
        self.tokens += tokens.tolist()
        self.log_probs += log_probs.tolist()

    def reply(self) -> Reply:
        stopped = self.kept is not None
        count = self.kept if self.kept is not None else len(self.tokens)
        return Reply(
            tokens=tuple(self.tokens[:count]),
            log_probs=tuple(self.log_probs[: count + stopped]),
            stopped=stopped,
        )


@dataclasses.dataclass(slots=True, eq=False)
class Conversation:
    """A request whose rows are being decoded; `last_token` stands at position `end`. Rank and
    ticket are those of a `Decoder`'s queue."""

    key: np.ndarray
    leaf: Entry | None
    end: int
    last_token: int
    rows: list[Row]
    rank: float = 0.0
    ticket: int = 0

    @property
    def undone(self) -> list[int]:
        """The branches that go on."""
        return [branch for branch, row in enumerate(self.rows) if not row.done]


Lane = list[Conversation | None]
"""The places of conversations with equally many branches."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seats:
    """Where the conversations and rows of one call stand; see `DecodeRows`."""

    lanes: Sequence[Lane]
    rows: Sequence[tuple[Conversation, int] | None]
    slots: np.ndarray | None

    def taken(self) -> Iterator[tuple[int, Conversation, int]]:
        """(row number, conversation, branch) of every row that is not padding."""
        for r, row in enumerate(self.rows):
            if row is not None:
                yield r, *row


@dataclasses.dataclass(frozen=True, slots=True)
class Seating:
    """How many rows and places there are, of them equally many on each device along `data`.

    Attributes:
      num_rows: Rows.
      branches: Of each lane, the slots of a place.
      places: Of each lane, its places.
      data: The number of devices.
    """

    num_rows: int
    branches: tuple[int, ...]
    places: tuple[int, ...]
    data: int

    @classmethod
    def of(cls, rows: int, branches: Sequence[int], data: int) -> Seating:
        """Places that each lane could fill all rows with; for at least one conversation."""
        lanes = tuple(sorted(set(branches), reverse=True))
        each = -(-rows // data)
        if len(lanes) == 1:  # rows and slots are one
            each = max(1, each // lanes[0]) * lanes[0]
        places = tuple(data * max(1, each // n) for n in lanes)
        return cls(num_rows=data * each, branches=lanes, places=places, data=data)

    def takes(self, running: Sequence[Conversation], one: Conversation) -> bool:
        """Whether there are a row and a place for one more conversation."""
        n = len(one.rows)
        beside = sum(len(c.rows) == n for c in running)
        return num_undone(running) < self.num_rows and beside < self.places[self.branches.index(n)]

    def seat(self, running: Sequence[Conversation]) -> Seats:
        """Gives rows to what the conversations still have to decode, the first of them first.

        Args:
          running: Not more of each lane than it has places.
        """
        lanes: list[Lane] = [[None] * count for count in self.places]
        rows: list[tuple[Conversation, int] | None] = [None] * self.num_rows
        own_places = [count // self.data for count in self.places]
        own_slots = [n * count for n, count in zip(self.branches, own_places, strict=True)]
        R, S = self.num_rows // self.data, sum(own_slots)
        slots = np.full((self.data, R), S, np.int32)
        num_seated = np.zeros((len(lanes), self.data), int)
        num_rows = np.zeros(self.data, int)
        for conversation in running:
            lane = self.branches.index(len(conversation.rows))
            free = np.where(num_seated[lane] < own_places[lane], R - num_rows, -1)
            device = int(free.argmax())
            if free[device] <= 0:
                continue
            place = num_seated[lane, device]
            slot = sum(own_slots[:lane]) + place * len(conversation.rows)
            for branch in conversation.undone[: free[device]]:
                r = slot + branch if S == R else num_rows[device]
                rows[device * R + r] = conversation, branch
                slots[device, r] = slot + branch
                num_rows[device] += 1
            lanes[lane][device * own_places[lane] + place] = conversation
            num_seated[lane, device] += 1
        return Seats(lanes=lanes, rows=rows, slots=None if S == R else slots)


def num_undone(conversations: Sequence[Conversation]) -> int:
    return sum(len(conversation.undone) for conversation in conversations)


def seat_pieces(lengths: Iterable[int], blocks: int, places: int, room: int) -> list[int]:
    """The places of pieces that are packed into blocks, of as many of the first ones as fit.

    Args:
      lengths: Of each piece; at most `room`.
      places: Of a block.
      room: Tokens of a block.
    """
    found: list[int] = []
    block, taken, tokens = 0, 0, 0
    for length in lengths:
        if taken == places or tokens + length > room:
            block, taken, tokens = block + 1, 0, 0
        if block == blocks:
            break
        found.append(block * places + taken)
        taken, tokens = taken + 1, tokens + length
    return found


def sibling_groups(entries: Iterable[Entry], most: int) -> list[list[Entry]]:
    """Groups entries that follow the same pages, at most so many in a group.

    An entry of which a portion was read stands alone.
    """
    open_groups: dict[Entry | None, list[Entry]] = {}
    groups: list[list[Entry]] = []
    for entry in entries:
        group = None if entry.portions_read else open_groups.get(entry.parent)
        if group is None or len(group) == most:
            group = []
            groups.append(group)
            if not entry.portions_read:
                open_groups[entry.parent] = group
        group.append(entry)
    return groups


def block_shape(sizes: Any, data: int) -> tuple[int, int]:
    """Returns the number of blocks in which pieces are packed, and the tokens of each.

    There is a block for each device if the devices have equally many rows; siblings fit into a
    block whatever their length.

    Args:
      sizes: An `EngineConfig`.
      data: Devices over which conversations are divided.
    """
    T = sizes.extend_tokens
    blocks = 1 if sizes.extend_rows // sizes.siblings % data else data
    batch = sizes.extend_batch or sizes.extend_rows * T // 2
    tokens = -(-batch // (blocks * sizes.page_size)) * sizes.page_size
    return blocks, max(sizes.siblings * T, tokens)
