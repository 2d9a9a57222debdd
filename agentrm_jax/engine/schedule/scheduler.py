"""Continuous decoding: requests wait in a queue, rows that are done make room for them.

The host's side of `decode.decode`. Between two calls, nothing of a row is on the device but its
pages, so every call seats its rows anew.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache.pages import PageTable, commit
from agentrm_jax.engine.cache.prefix_cache import Entry, Piece
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.decode import Decoded, DecodeRows, decode
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.schedule.batch import (
    Conversation,
    Lane,
    Reply,
    Row,
    Seating,
    Seats,
    num_undone,
)
from agentrm_jax.engine.schedule.stopping import Stopping


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A conversation to continue.

    Attributes:
      pieces: The conversation. Where its pieces begin at the last token before each reply, what was
        decoded before need not be read again.
      key: [2] uint32 random key data. Equal requests with equal keys get equal replies.
    """

    pieces: Sequence[Piece]
    key: np.ndarray


class _Call(NamedTuple):
    """A call of the compiled program that the device works on."""

    seats: Seats
    pages: jax.Array
    new: list[tuple[jax.Array, jax.Array]]
    decoded: Decoded


class Decoder:
    """Decodes replies with fixed sampling.

    Args:
      engine: The model.
      sampling: How tokens are chosen.
      stopping: What ends a reply.
      branches: The numbers of replies that requests will ask for; for each there is a lane.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, stopping: Stopping, branches: Sequence[int]
    ) -> None:
        self.engine, self.sampling, self.stopping = engine, sampling, stopping
        self._seating = Seating.of(engine.sizes.decode_rows, branches, engine.data)
        self._waiting: list[tuple[float, int, Request, int]] = []  # a heap
        self._reading: list[Conversation] = []
        self._running: list[Conversation] = []
        size = engine.sizes.decode_tokens
        steps = -(-sampling.max_tokens // size)
        self._pages = size // engine.sizes.page_size  # of a row, each call
        self._most_row_pages = steps * self._pages
        # What a row has decoded before is read in tiles as well, or in one that is smaller.
        tails = (steps - 1) * self._pages
        self._tail_pages = -(-tails // engine.tile) * engine.tile if tails > engine.tile else tails
        self._ends = engine.put(stopping.ends(engine.config.vocab_size))
        self._tickets = 0
        self._in_flight: _Call | None = None

    def warm_up(self) -> None:
        """Compiles what decoding needs, on rows of padding."""
        self.engine.warm_up()
        for share in self.engine.shares:
            self._commit(self._decode(share))

    def submit(self, request: Request, n: int, rank: float = 0.0) -> int:
        """Queues a request for n replies and gives its ticket; n is one of `branches`. Requests of
        lower rank go first."""
        self._tickets += 1
        heapq.heappush(self._waiting, (rank, self._tickets, request, n))
        return self._tickets

    def room(self) -> int:
        """Rows that are left beside all requests that are not done."""
        entered = num_undone(self._running) + num_undone(self._reading)
        waiting = sum(n for *_, n in self._waiting)
        return max(0, self._seating.num_rows - entered - waiting)

    def start(self) -> None:
        """Lets waiting requests enter and sets the device to work; returns at once."""
        if self._in_flight is not None:
            return
        self._begin_waiting()
        self._read()
        if self._running:
            self._in_flight = self._decode()
        elif self._waiting:
            raise ValueError("another decoder of this engine holds the pages")

    def _begin_waiting(self) -> None:
        """Gives waiting requests pages, as long as there are some: to as many as fill the rows, so
        that they are read while others are decoded."""
        while self._waiting and num_undone(self._reading) < self._seating.num_rows:
            conversation = self._begin(*self._waiting[0])
            if conversation is None:
                return
            heapq.heappop(self._waiting)
            bisect.insort(self._reading, conversation, key=lambda c: (c.rank, c.ticket))

    def _read(self) -> None:
        """Reads some of the conversations that have begun; those that are read enter.

        One call reads one portion of each, and so their portions are read side by side: more than
        one call only where its rows are full, or where nothing could be decoded without it.
        """
        read_once = False
        while True:
            self._enter()
            leaves = [c.leaf for c in self._reading if c.leaf is not None]
            ready = self.engine.ready(leaves, in_order=True)
            full = self.engine.num_fitting(ready) < len(ready)
            if not ready or (read_once and self._running and not full):
                return
            self.engine.read_ready(ready)
            read_once = True

    def _enter(self) -> None:
        """Lets conversations that are read begin to run, in their order, while there are rows and a
        place in their lane."""
        cache = self.engine.cache
        for c in [c for c in self._reading if c.leaf is None or not cache.missing([c.leaf])]:
            if self._seating.takes(self._running, c):
                self._reading.remove(c)
                self._running.append(c)

    def collect(self) -> list[tuple[int, list[Reply]]]:
        """Waits for the work that was started; gives the replies to requests that are done."""
        if self._in_flight is None:
            return []
        call, self._in_flight = self._in_flight, None
        self._commit(call)
        decoded = jax.device_get(call.decoded)
        for r, conversation, branch in call.seats.taken():
            row, count = conversation.rows[branch], int(decoded.lengths[r])
            self.engine.usage.decoded += count
            row.take(decoded.tokens[r, :count], decoded.log_probs[r, :count])
            row.kept = self.stopping.kept(row.tokens)
            row.done = (
                row.kept is not None
                or bool(decoded.ended[r])
                or len(row.tokens) >= self.sampling.max_tokens
            )
        done = [c for c in self._running if not c.undone]
        self._running = [c for c in self._running if c.undone]
        return [self._leave(conversation) for conversation in done]

    def _begin(self, rank: float, ticket: int, request: Request, n: int) -> Conversation | None:
        """A request with the pages for its conversation and replies; None while there are none."""
        cache = self.engine.cache
        leaf, end, last_token = enter(self.engine, request, self.sampling.max_tokens)
        leaves = [] if leaf is None else [leaf]
        if not cache.reserve(leaves, n * self._most_row_pages):
            return None
        if leaf is not None:
            cache.pin(leaf, 1)
        rows = [Row(pages=cache.take(self._most_row_pages)) for _ in range(n)]
        return Conversation(request.key, leaf, end, last_token, rows, rank, ticket)

    def _leave(self, conversation: Conversation) -> tuple[int, list[Reply]]:
        """Commits the replies: their pages become a piece of the conversation."""
        cache, page_size = self.engine.cache, self.engine.sizes.page_size
        if conversation.leaf is not None:
            cache.pin(conversation.leaf, -1)
        replies = [row.reply() for row in conversation.rows]
        for row, reply in zip(conversation.rows, replies, strict=True):
            piece = read_piece(conversation.last_token, reply)
            count = -(-len(piece) // page_size)
            cache.give(row.pages[count:])
            cache.adopt(conversation.leaf, piece, row.pages[:count])
        return conversation.ticket, replies

    def prepare(self, share: float = 0.0) -> tuple[Seats, DecodeRows, dict[str, Any]]:
        """Who is decoded in the next call, and what the compiled program takes, on the host."""
        engine, seats = self.engine, self._seating.seat(self._running)
        rows = make_rows(engine, seats, self.sampling, self._ends, self._tail_pages)
        settings = {
            "branches": self._seating.branches,
            "length": engine.sizes.decode_tokens,
            "tile": engine.tile,
            "tiles": engine.tiles(rows.contexts, share),
            "filter": self.sampling.filter,
        }
        return seats, rows, settings

    def _decode(self, share: float = 0.0) -> _Call:
        """One call of the compiled program; see `Engine.tiles`."""
        engine, size = self.engine, self.engine.sizes.page_size
        seats, rows, settings = self.prepare(share)
        pages = np.full((len(seats.rows), self._pages), engine.cache.num_pages, np.int32)
        for r, conversation, branch in seats.taken():
            row = conversation.rows[branch]
            used = len(row.tokens) // size
            pages[r] = row.pages[used : used + self._pages]
        rows, pages = engine.put((rows, pages))
        params = engine.params_for(len(seats.rows))
        new, decoded = decode(params, engine.config, engine.pool, rows, **settings)
        return _Call(seats, pages, new, decoded)

    def _commit(self, call: _Call) -> None:
        """Writes what a call has read. Not before it is waited for: on several CPU devices, writing
        to pages that are still being read would wait for that, and environments with it."""
        self.engine.pool = commit(self.engine.pool, call.new, call.pages)


def make_rows(
    engine: Engine,
    seats: Seats,
    sampling: Sampling,
    ends: np.ndarray | jax.Array,
    tail_pages: int,
) -> DecodeRows:
    """What the compiled decoder takes, on the host.

    Args:
      ends: [V] bool, see `DecodeRows`.
      tail_pages: Most pages of what a row has decoded before.
    """
    R = len(seats.rows)
    last_tokens, positions, offsets, branch_of = np.zeros((4, R), np.int32)
    keys, active = np.zeros((R, 2), np.uint32), np.zeros(R, bool)
    tail = np.zeros((2, R, tail_pages), np.int32)
    for r, conversation, branch in seats.taken():
        row = conversation.rows[branch]
        offset = len(row.tokens)
        last_tokens[r] = row.tokens[-1] if offset else conversation.last_token
        positions[r], offsets[r] = conversation.end + offset, offset
        branch_of[r], keys[r], active[r] = branch, conversation.key, True
        used = offset // engine.sizes.page_size  # all pages but the last call's are full
        tail[0, r, :used], tail[1, r, :used] = row.pages[:used], engine.sizes.page_size
    return DecodeRows(
        contexts=engine.contexts([_beginnings(lane) for lane in seats.lanes]),
        slots=seats.slots,
        tails=PageTable(pages=tail[0], fills=tail[1]) if tail_pages else None,
        last_tokens=last_tokens,
        positions=positions,
        offsets=offsets,
        keys=keys,
        branches=branch_of,
        temperature=np.full(R, sampling.temperature, np.float32),
        limits=np.full(R, sampling.max_tokens, np.int32),
        active=active,
        ends=ends,
    )


def _beginnings(lane: Lane) -> tuple[list[tuple[Entry | None, int]], int, list[int]]:
    """See `Engine.contexts`."""
    held = [(place, c) for place, c in enumerate(lane) if c is not None]
    return [(c.leaf, c.end) for _, c in held], len(lane), [place for place, _ in held]


def enter(engine: Engine, request: Request, max_tokens: int) -> tuple[Entry | None, int, int]:
    """A request's conversation without its last token, which decoding reads first.

    Returns:
      Its entry, how long it is, and that token.

    Raises:
      UserError: The conversation and a reply of `max_tokens` are longer than the context.
    """
    *pieces, last = request.pieces
    end = sum(map(len, pieces)) + len(last) - 1
    if end + 1 + max_tokens > engine.sizes.context:
        raise UserError(
            f"must be at least {end + 1 + max_tokens} for a conversation of {end + 1} tokens and a "
            f"reply of {max_tokens}",
            field="engine.context",
            value=engine.sizes.context,
        )
    if len(last) > 1:
        pieces.append(last[:-1])
    return engine.cache.find(pieces) if pieces else None, end, int(last[-1])


def read_piece(last_token: int, reply: Reply) -> Piece:
    """What decoding a reply has read: the token before it, and its own.

    The last token of a reply that was cut off was not read.
    """
    read = len(reply.tokens) - (not reply.stopped)
    return np.asarray([last_token, *reply.tokens[:read]], np.int32)


def generate(
    engine: Engine, requests: Sequence[Request], *, n: int, sampling: Sampling, stop: int
) -> list[list[Reply]]:
    """n replies to each request, in order; any number of requests."""
    decoder = Decoder(engine, sampling, Stopping(tokens=(stop,)), [n])
    # A batch costs what its longest conversation does.
    order = sorted(range(len(requests)), key=lambda i: sum(map(len, requests[i].pieces)))
    number = {decoder.submit(requests[i], n): i for i in order}
    replies: dict[int, list[Reply]] = {}
    while len(replies) < len(requests):
        decoder.start()
        replies.update((number[ticket], found) for ticket, found in decoder.collect())
    return [replies[i] for i in range(len(requests))]
