"""Continuous decoding: requests wait in a queue, rows that are done make room for them.

The host's side of `decode.decode`. Between two calls, nothing of a row is on the device but its
pages.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.decode import Decoded, DecodeRows, decode
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.pages import PageTable, commit
from agentrm_jax.engine.prefix_cache import Entry, Piece
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.engine.stopping import Stopping


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
    """A request whose rows are being decoded; `last_token` stands at position `end`."""

    ticket: int
    key: np.ndarray
    leaf: Entry | None
    end: int
    last_token: int
    rows: list[Row]


class Decoder:
    """Decodes replies with fixed sampling.

    Args:
      engine: The model.
      sampling: How tokens are chosen.
      stopping: What ends a reply.
      branches: The numbers of replies that requests will ask for; each gets its share of the rows.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, stopping: Stopping, branches: Sequence[int]
    ) -> None:
        self.engine, self.sampling, self.stopping = engine, sampling, stopping
        self.branches = tuple(sorted(set(branches), reverse=True))
        counts = lane_places(engine.sizes.decode_rows, self.branches, engine.data)
        self._lanes: list[Lane] = [[None] * count for count in counts]
        self._waiting: list[collections.deque[tuple[int, Request]]] = [
            collections.deque() for _ in self.branches
        ]
        self._reading: list[list[Conversation]] = [[] for _ in self.branches]
        size = engine.sizes.decode_tokens
        steps = -(-sampling.max_tokens // size)
        self._pages = size // engine.sizes.page_size  # of a row, each call
        self._most_row_pages = steps * self._pages
        # What a row has decoded before is read in tiles as well, or in one that is smaller.
        tails = (steps - 1) * self._pages
        self._tail_pages = -(-tails // engine.tile) * engine.tile if tails > engine.tile else tails
        self._ends = engine.put(stopping.ends(engine.config.vocab_size))
        self._tickets = 0
        self._in_flight: Decoded | None = None

    def warm_up(self) -> None:
        """Compiles what decoding needs, on rows of padding."""
        self.engine.warm_up()
        for room in self.engine.rooms:
            self._decode(room)

    def submit(self, request: Request, n: int) -> int:
        """Queues a request for n replies and gives its ticket; n is one of `branches`."""
        self._tickets += 1
        self._waiting[self.branches.index(n)].append((self._tickets, request))
        return self._tickets

    def start(self) -> None:
        """Lets waiting requests enter and sets the device to work; returns at once."""
        if self._in_flight is not None:
            return
        self._begin_waiting()
        self._read()
        if any(c is not None for lane in self._lanes for c in lane):
            self._in_flight = self._decode()
        elif any(self._waiting):
            raise ValueError("another decoder of this engine holds the pages")

    def _begin_waiting(self) -> None:
        """Gives waiting requests pages, as long as there are some: to as many as have places, so
        that they are read while others are decoded."""
        for lane, n in enumerate(self.branches):
            while self._waiting[lane] and len(self._reading[lane]) < len(self._lanes[lane]):
                conversation = self._begin(*self._waiting[lane][0], n)
                if conversation is None:
                    return
                self._waiting[lane].popleft()
                self._reading[lane].append(conversation)

    def _read(self) -> None:
        """Reads some of the conversations that have begun; those that are read enter.

        One call reads one portion of each, and so their portions are read side by side: more than
        one call only where its rows are full, or where nothing could be decoded without it.
        """
        read_once = False
        while True:
            self._enter()
            leaves = [c.leaf for lane in self._reading for c in lane if c.leaf is not None]
            ready = self.engine.ready(leaves)
            idle = not any(c is not None for lane in self._lanes for c in lane)
            full = len(ready) >= self.engine.sizes.extend_rows // self.engine.sizes.siblings
            if not ready or (read_once and not idle and not full):
                return
            self.engine.read_ready(ready)
            read_once = True

    def _enter(self) -> None:
        """Gives free places to conversations that are read, in the order in which they came."""
        cache = self.engine.cache
        for lane, reading in zip(self._lanes, self._reading, strict=True):
            free = [place for place, held in enumerate(lane) if held is None]
            entering = [c for c in reading if c.leaf is None or not cache.missing([c.leaf])]
            for place, conversation in zip(free, entering, strict=False):
                lane[place] = conversation
                reading.remove(conversation)

    def collect(self) -> list[tuple[int, list[Reply]]]:
        """Waits for the work that was started; gives the replies to requests that are done."""
        if self._in_flight is None:
            return []
        decoded: Decoded = jax.device_get(self._in_flight)
        self._in_flight = None
        finished = []
        for r, conversation, branch in numbered_rows(self._lanes, self.branches):
            row = conversation.rows[branch]
            if not row.done:
                count = int(decoded.lengths[r])
                self.engine.usage.decoded += count
                row.take(decoded.tokens[r, :count], decoded.log_probs[r, :count])
                row.kept = self.stopping.kept(row.tokens)
                row.done = (
                    row.kept is not None
                    or bool(decoded.ended[r])
                    or len(row.tokens) >= self.sampling.max_tokens
                )
        for lane in self._lanes:
            for place, conversation in enumerate(lane):
                if conversation is not None and all(row.done for row in conversation.rows):
                    lane[place] = None
                    finished.append(self._leave(conversation))
        return finished

    def _begin(self, ticket: int, request: Request, n: int) -> Conversation | None:
        """A request with the pages for its conversation and replies; None while there are none."""
        cache = self.engine.cache
        leaf, end, last_token = enter(self.engine, request, self.sampling.max_tokens)
        leaves = [] if leaf is None else [leaf]
        if not cache.reserve(leaves, n * self._most_row_pages):
            return None
        if leaf is not None:
            cache.pin(leaf, 1)
        rows = [Row(pages=cache.take(self._most_row_pages)) for _ in range(n)]
        return Conversation(ticket, request.key, leaf, end, last_token, rows)

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

    def _decode(self, room: float = 0.0) -> Decoded:
        """One call of the compiled program; see `Engine.tiles`."""
        engine, size = self.engine, self.engine.sizes.page_size
        rows = make_rows(
            engine, self._lanes, self.branches, self.sampling, self._ends, self._tail_pages
        )
        tiles = engine.tiles(rows.contexts, room)
        pages = np.full((len(rows.active), self._pages), engine.cache.num_pages, np.int32)
        for r, conversation, branch in numbered_rows(self._lanes, self.branches):
            row = conversation.rows[branch]
            if not row.done:
                used = len(row.tokens) // size
                pages[r] = row.pages[used : used + self._pages]
        rows, pages = engine.put((rows, pages))
        new, decoded = decode(
            engine.params_for(len(rows.active)),
            engine.config,
            engine.pool,
            rows,
            branches=self.branches,
            length=engine.sizes.decode_tokens,
            tile=engine.tile,
            tiles=tiles,
            filter=self.sampling.filter,
        )
        engine.pool = commit(engine.pool, new, pages)
        return decoded


Lane = list[Conversation | None]
"""The places of conversations with equally many rows."""


def numbered_rows(
    lanes: Sequence[Lane], branches: Sequence[int]
) -> Iterator[tuple[int, Conversation, int]]:
    """(row number, conversation, branch) of every row that is taken."""
    first = 0
    for n, lane in zip(branches, lanes, strict=True):
        for conversation in lane:
            if conversation is not None:
                yield from ((first + b, conversation, b) for b in range(n))
            first += n


def make_rows(
    engine: Engine,
    lanes: Sequence[Lane],
    branches: Sequence[int],
    sampling: Sampling,
    ends: np.ndarray | jax.Array,
    tail_pages: int,
) -> DecodeRows:
    """What the compiled decoder takes, on the host.

    Args:
      ends: [V] bool, see `DecodeRows`.
      tail_pages: Most pages of what a row has decoded before.
    """
    R = sum(n * len(lane) for n, lane in zip(branches, lanes, strict=True))
    last_tokens, positions, offsets, branch_of = np.zeros((4, R), np.int32)
    keys, active = np.zeros((R, 2), np.uint32), np.zeros(R, bool)
    tail = np.zeros((2, R, tail_pages), np.int32)
    for r, conversation, branch in numbered_rows(lanes, branches):
        row = conversation.rows[branch]
        offset = len(row.tokens)
        last_tokens[r] = row.tokens[-1] if offset else conversation.last_token
        positions[r], offsets[r] = conversation.end + offset, offset
        branch_of[r], keys[r], active[r] = branch, conversation.key, not row.done
        if not row.done:  # all pages but the last call's are full
            used = offset // engine.sizes.page_size
            tail[0, r, :used], tail[1, r, :used] = row.pages[:used], engine.sizes.page_size
    return DecodeRows(
        contexts=engine.contexts([_beginnings(lane) for lane in lanes]),
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


def places(rows: int, n: int, data: int) -> int:
    """How many conversations of n rows each make about so many rows: at least one, and equally many
    on each of the `data` devices where there are enough of them."""
    count = max(1, rows // n)
    return count // data * data or count


def lane_places(rows: int, branches: Sequence[int], data: int) -> list[int]:
    """How many conversations each lane takes; every lane gets its share of about so many rows.

    Args:
      branches: Rows of a conversation, in each lane; the last lane gets what is left.
    """
    *wide, last = branches
    counts = [places(rows // len(branches), n, data) for n in wide]
    taken = sum(n * count for n, count in zip(wide, counts, strict=True))
    return [*counts, places(rows - taken, last, data)]


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
            f"engine.context: a conversation of {end + 1} tokens and a reply of {max_tokens} do "
            f"not fit into {engine.sizes.context}"
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
