"""Continuous batching: requests wait in a queue, and rows that are done make room for them.

Between two calls, only the pages of a row are on the device: every call lays its batch out again.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention import tiles
from agentrm_jax.engine.cache.pages import KeyValues, PageTable
from agentrm_jax.engine.cache.prefix_cache import Node
from agentrm_jax.engine.cache.tables import TableRows
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.decode import DecodePlan
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import Reply, Request, Tokens, TokenSequence
from agentrm_jax.engine.rows import Decoded, DecodeRows
from agentrm_jax.engine.schedule.batch import (
    BatchLayout,
    BatchShape,
    Branch,
    Group,
    RunningRequest,
    num_open_branches,
)
from agentrm_jax.engine.schedule.stopping import Stopping


class _Call(NamedTuple):
    """A call of the compiled program that the device works on."""

    layout: BatchLayout
    pages: jax.Array
    new: KeyValues
    decoded: Decoded


class Scheduler:
    """Decodes replies to requests with fixed sampling.

    Args:
      engine: The model.
      sampling: How tokens are sampled.
      stopping: What ends a reply.
      branches: The numbers of replies that requests will ask for; each makes a group of a batch.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, stopping: Stopping, branches: Sequence[int]
    ) -> None:
        self.engine, self.sampling, self.stopping = engine, sampling, stopping
        self._shape = BatchShape.of(engine.sizes.decode_rows, branches, engine.programs.data)
        self._waiting: list[tuple[float, int, Request, int]] = []  # a heap
        self._prefilling: list[RunningRequest] = []
        self._running: list[RunningRequest] = []
        size = engine.sizes.decode_tokens
        calls = -(-sampling.max_tokens // size)
        self._call_pages = size // engine.sizes.page_size  # of a row
        self._row_pages = calls * self._call_pages
        # Tails are read in tiles as well, or in one smaller tile.
        tails, tile = (calls - 1) * self._call_pages, engine.tables.tile
        self._tail_pages = -(-tails // tile) * tile if tails > tile else tails
        self._ends = engine.programs.put(stopping.ends(engine.config.vocab_size))
        self._tickets = 0
        self._in_flight: _Call | None = None

    def warm_up(self) -> None:
        """Compiles all programs that answering needs, on rows of padding."""
        self.engine.warm_up()
        for fraction in self.engine.programs.bucket_fractions:
            self._commit(self._decode(fraction))

    def submit(self, request: Request, n: int, rank: float = 0.0) -> int:
        """Queues a request.

        Args:
          request: The sequence to continue.
          n: The number of replies; one of `branches`.
          rank: Requests of lower rank go first.

        Returns:
          A ticket, which `collect` returns with the replies.
        """
        self._tickets += 1
        heapq.heappush(self._waiting, (rank, self._tickets, request, n))
        return self._tickets

    def room(self) -> int:
        """Returns the rows that are left after all requests that are not done."""
        entered = num_open_branches(self._running) + num_open_branches(self._prefilling)
        waiting = sum(n for *_, n in self._waiting)
        return max(0, self._shape.num_rows - entered - waiting)

    def start(self) -> None:
        """Starts the next call unless one is in flight, and returns at once.

        Raises:
          ValueError: Another scheduler of the engine holds the pages.
        """
        if self._in_flight is not None:
            return
        self._admit_waiting()
        self._prefill()
        if self._running:
            self._in_flight = self._decode()
        elif self._waiting:
            raise ValueError("another scheduler of this engine holds the pages")

    def collect(self) -> list[tuple[int, list[Reply]]]:
        """Waits for the call in flight; if there is none, starts the next one first.

        Returns:
          (ticket, replies) of the requests that are done with this call. Without any request, and
          if no request is done yet, the list is empty.
        """
        self.start()
        if self._in_flight is None:
            return []
        call, self._in_flight = self._in_flight, None
        self._commit(call)
        decoded = jax.device_get(call.decoded)
        for r, _, branch, _ in call.layout.active_rows():
            count = int(decoded.lengths[r])
            self.engine.usage.decoded += count
            branch.append(decoded.tokens[r, :count], decoded.log_probs[r, :count])
            branch.reply_length = self.stopping.reply_length(branch.tokens)
            branch.done = (
                branch.reply_length is not None
                or bool(decoded.ended[r])
                or len(branch.tokens) >= self.sampling.max_tokens
            )
        done = [request for request in self._running if not request.open_branches]
        self._running = [request for request in self._running if request.open_branches]
        return [(request.ticket, self._finish(request)) for request in done]

    def release(self) -> None:
        """Forgets all requests and gives their pages back, after a call that failed."""
        for request in [*self._prefilling, *self._running]:
            if request.leaf is not None:
                self.engine.cache.pin(request.leaf, -1)
            for branch in request.branches:
                self.engine.cache.free(branch.pages)
        self._waiting, self._prefilling, self._running = [], [], []
        self._in_flight = None  # what it has read is not written

    def _admit_waiting(self) -> None:
        """Gives pages to waiting requests, to as many as fill the rows: they are read while others
        are decoded."""
        while self._waiting and num_open_branches(self._prefilling) < self._shape.num_rows:
            request = self._admit(*self._waiting[0])
            if request is None:
                return
            heapq.heappop(self._waiting)
            bisect.insort(self._prefilling, request, key=lambda r: (r.rank, r.ticket))

    def _admit(self, rank: float, ticket: int, request: Request, n: int) -> RunningRequest | None:
        """The request with pages for its sequence and its replies, or None if there are too few."""
        cache = self.engine.cache
        prefix = find_prefix(self.engine, request, self.sampling.max_tokens)
        leaves = [] if prefix.leaf is None else [prefix.leaf]
        if not cache.reserve(leaves, n * self._row_pages):
            return None
        if prefix.leaf is not None:
            cache.pin(prefix.leaf, 1)
        branches = [Branch(pages=cache.allocate(self._row_pages)) for _ in range(n)]
        return RunningRequest(request.key, *prefix, branches, rank, ticket)

    def _prefill(self) -> None:
        """Reads some of the admitted sequences; requests that are read begin to run.

        One call reads one chunk of each, so that all of them advance. There is more than one call
        only if its rows are full, or if nothing could be decoded without it.
        """
        prefill, read_once = self.engine.prefill, False
        while True:
            self._run_prefilled()
            leaves = [r.leaf for r in self._prefilling if r.leaf is not None]
            groups = prefill.ready(leaves, in_order=True)
            full = prefill.num_fitting(groups) < len(groups)
            if not groups or (read_once and self._running and not full):
                return
            prefill.run_batch(groups)
            read_once = True

    def _run_prefilled(self) -> None:
        """Moves requests that are read to the running ones, in order, if the batch has room."""
        cache = self.engine.cache
        for r in [r for r in self._prefilling if r.leaf is None or not cache.missing([r.leaf])]:
            if self._shape.admits(self._running, r):
                self._prefilling.remove(r)
                self._running.append(r)

    def _finish(self, request: RunningRequest) -> list[Reply]:
        """Returns the replies; their pages become segments of the prefix cache."""
        cache, page_size = self.engine.cache, self.engine.sizes.page_size
        if request.leaf is not None:
            cache.pin(request.leaf, -1)
        replies = [branch.reply() for branch in request.branches]
        for branch, reply in zip(request.branches, replies, strict=True):
            segment = decoded_segment(request.last_token, reply)
            count = -(-len(segment) // page_size)
            cache.free(branch.pages[count:])
            cache.insert(request.leaf, segment, branch.pages[:count])
        return replies

    def prepare(self, at_least: float = 0.0) -> tuple[BatchLayout, DecodeRows, DecodePlan]:
        """Returns the layout of the next call, and what the compiled program takes, on the host.

        Args:
          at_least: The least bucket of tiles (`attention.tiles.bucket`).
        """
        engine, layout = self.engine, self._shape.layout(self._running)
        rows = decode_rows(engine, layout, self.sampling, self._ends, self._tail_pages)
        backend = engine.programs.model.pool.backend
        plan = DecodePlan(
            branches=self._shape.branches,
            length=engine.sizes.decode_tokens,
            tile=engine.tables.tile,
            num_tiles=tiles.bucket(rows.contexts, engine.tables.tile, backend, at_least),
            filter=self.sampling.filter,
        )
        return layout, rows, plan

    def _decode(self, at_least: float = 0.0) -> _Call:
        engine, size = self.engine, self.engine.sizes.page_size
        layout, rows, plan = self.prepare(at_least)
        pages = np.full((len(layout.rows), self._call_pages), engine.cache.num_pages, np.int32)
        for r, _, branch, _ in layout.active_rows():
            used = len(branch.tokens) // size
            pages[r] = branch.pages[used : used + self._call_pages]
        rows, pages = engine.programs.put((rows, pages))
        return _Call(layout, pages, *engine.programs.decode(rows, plan))

    def _commit(self, call: _Call) -> None:
        """Writes what a call has read, after it is done: on several CPU devices, writing to pages
        that are still being read would block, and environments with it."""
        self.engine.programs.commit(call.new, call.pages)


def decode_rows(
    engine: Engine,
    layout: BatchLayout,
    sampling: Sampling,
    ends: np.ndarray | jax.Array,
    tail_pages: int,
) -> DecodeRows:
    """Returns the rows that the compiled program takes, on the host.

    Args:
      engine: The model.
      layout: The rows of the call.
      sampling: How tokens are sampled.
      ends: [V] bool, see `DecodeRows`.
      tail_pages: Most pages of what a row has decoded in earlier calls.
    """
    R = len(layout.rows)
    last_tokens, positions, offsets, branch_of = np.zeros((4, R), np.int32)
    keys, active = np.zeros((R, 2), np.uint32), np.zeros(R, bool)
    tail = np.zeros((2, R, tail_pages), np.int32)
    for r, request, branch, number in layout.active_rows():
        offset = len(branch.tokens)
        last_tokens[r] = branch.tokens[-1] if offset else request.last_token
        positions[r], offsets[r] = request.end + offset, offset
        branch_of[r], keys[r], active[r] = number, request.key, True
        used = offset // engine.sizes.page_size  # all pages but the last call's are full
        tail[0, r, :used], tail[1, r, :used] = branch.pages[:used], engine.sizes.page_size
    return DecodeRows(
        contexts=engine.tables.contexts([_table_rows(group) for group in layout.groups]),
        slots=layout.slots,
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


def _table_rows(group: Group) -> TableRows:
    requests = [(row, request) for row, request in enumerate(group) if request is not None]
    return TableRows(
        num_rows=len(group),
        rows=[row for row, _ in requests],
        ends=[(request.leaf, request.end) for _, request in requests],
    )


class Prefix(NamedTuple):
    """A sequence without its last token, which decoding reads first.

    Attributes:
      leaf: The last node of the prefix, or None if it is empty.
      end: The length of the prefix: the position of the last token.
      last_token: The last token.
    """

    leaf: Node | None
    end: int
    last_token: int


def find_prefix(engine: Engine, request: Request, max_tokens: int) -> Prefix:
    """Returns the prefix of a request in the engine's cache; new segments are added, not yet read.

    Raises:
      UserError: The sequence and a reply of `max_tokens` are longer than the context.
    """
    *segments, last = request.segments
    end = request.length - 1
    if end + 1 + max_tokens > engine.sizes.context:
        raise UserError(
            f"must be at least {end + 1 + max_tokens} for a sequence of {end + 1} tokens and a "
            f"reply of {max_tokens}",
            field="engine.context",
            value=engine.sizes.context,
        )
    # A shared prefix is read as a whole, without the token that decoding begins with.
    shared = request.shared_prefix and bool(segments)
    if len(last) > 1:
        segments.append(last[:-1])
    prefix = TokenSequence(segments=segments, shared_prefix=shared)
    return Prefix(engine.cache.find(prefix) if segments else None, end, int(last[-1]))


def decoded_segment(last_token: int, reply: Reply) -> Tokens:
    """Returns the tokens that decoding a reply has read: the token before it and its own.

    The last token of a reply that was cut off was not read.
    """
    read = len(reply.tokens) - (not reply.stopped)
    return np.asarray([last_token, *reply.tokens[:read]], np.int32)
