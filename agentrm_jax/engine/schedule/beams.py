"""Beam steps over any number of tasks: the host's side of the programs in `beam`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from agentrm_jax.engine.cache.pages import commit
from agentrm_jax.engine.cache.prefix_cache import Entry, Piece
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.decode import Decoded
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.programs.select import BeamChoice, InStepScorer, beam_step, extend_select
from agentrm_jax.engine.schedule.batch import Conversation, Reply, Row, Seating, Seats
from agentrm_jax.engine.schedule.scheduler import Request, enter, make_rows, read_piece
from agentrm_jax.engine.schedule.stopping import Stopping

Choice = list[tuple[int, float]]
"""What is kept of a task, best first, and its score: finished beams are numbered first."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beams:
    """One task's beams before a step.

    Attributes:
      requests: The live ones, at most `beam_width`.
      conversations: The same as the scorer reads them; their pieces may be cut elsewhere.
      states: For each, a number; equal numbers stand in the same state.
      finished: Scores of the finished ones.
    """

    requests: Sequence[Request]
    conversations: Sequence[Sequence[Piece]]
    states: Sequence[int]
    finished: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a step keeps: a reply to request `number`, or, without one, finished beam `number`."""

    number: int
    reply: Reply | None
    score: float


def step_beams(
    engine: Engine,
    scorer: Engine,
    tasks: Sequence[Beams],
    *,
    n: int,
    beam_width: int,
    sampling: Sampling,
    stops: Sequence[int],
) -> list[tuple[list[Kept], int]]:
    """One compiled decode-score-select for each batch of tasks.

    Args:
      stops: The tokens that end a reply; the scorer reads the first after every reply.

    Returns:
      For each task what is kept, best first, and the number of tokens decoded.
    """
    [together] = Seating.of(engine.sizes.decode_rows, (beam_width * n,), engine.data).places
    out: list[tuple[list[Kept], int]] = []
    for first in range(0, len(tasks), together):
        step = _Step(engine, scorer, tasks[first : first + together], together, n, beam_width)
        out.extend(step.run(sampling, Stopping(tokens=tuple(stops))))
    return out


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """One call of `beam_step`."""

    engine: Engine
    scorer: Engine
    batch: Sequence[Beams]
    together: int
    n: int
    beam_width: int

    def run(self, sampling: Sampling, stopping: Stopping) -> list[tuple[list[Kept], int]]:
        engine, scorer = self.engine, self.scorer
        lane, arguments, length, tiles = self.prepare(sampling, stopping)
        choice, decoded, new = self.call(arguments, sampling, length, tiles)
        choice, decoded = jax.device_get((choice, decoded))
        out, pages = self._read(lane, choice, decoded, sampling, stopping, length)
        engine.pool = commit(engine.pool, new, engine.put(pages))
        for _, tokens in out:
            engine.usage.decoded += tokens
            scorer.usage.read += tokens
        return out

    def prepare(self, sampling: Sampling, stopping: Stopping):
        """Reads the conversations and puts on the device what the step takes."""
        engine, scorer = self.engine, self.scorer
        requests = [request for beams in self.batch for request in beams.requests]
        entered = [enter(engine, request, sampling.max_tokens) for request in requests]
        engine.read([leaf for leaf, _, _ in entered if leaf is not None])
        whole = [
            scorer.cache.find(pieces) for beams in self.batch for pieces in beams.conversations
        ]
        scorer.read(whole)
        # Every task has `beam_width` places side by side; those without a live beam are padding.
        at = [
            b * self.beam_width + p
            for b, beams in enumerate(self.batch)
            for p in range(len(beams.requests))
        ]
        lane: list[Conversation | None] = [None] * (self.together * self.beam_width)
        for place, request, (leaf, end, last) in zip(at, requests, entered, strict=True):
            rows = [Row(pages=[]) for _ in range(self.n)]
            lane[place] = Conversation(request.key, leaf, end, last, rows)
        states = np.zeros((self.together, self.beam_width), np.int32)
        finished = np.full((self.together, self.beam_width), -np.inf, np.float32)
        for b, beams in enumerate(self.batch):
            states[b, : len(beams.states)] = beams.states
            finished[b, : len(beams.finished)] = beams.finished
        ends = stopping.ends(engine.config.vocab_size)
        taken = [None if c is None else (c, branch) for c in lane for branch in range(self.n)]
        rows = make_rows(engine, Seats([lane], taken, None), sampling, ends, 0)
        context = scorer.context([(leaf, leaf.end) for leaf in whole], len(lane), at)
        size = engine.sizes.page_size
        length = -(-sampling.max_tokens // size) * size
        tiles = engine.tiles(rows.contexts)
        rows = engine.put((rows, states, finished, np.int32(stopping.tokens[0])))
        return lane, (*rows, scorer.put(context)), length, tiles

    def call(self, arguments, sampling: Sampling, length: int, tiles: tuple[int, ...]):
        """The compiled program; nothing goes to or from the host."""
        rows, states, finished, stop, context = arguments
        engine, scorer = self.engine, self.scorer
        assert scorer.readout is not None
        return beam_step(
            engine.params,
            engine.config,
            engine.pool,
            rows,
            InStepScorer(
                params=scorer.params,
                head=scorer.head,
                pool=scorer.pool,
                config=scorer.config,
                readout=scorer.readout,
            ),
            context,
            states,
            finished,
            stop,
            n=self.n,
            length=length,
            tile=engine.tile,
            tiles=tiles,
            filter=sampling.filter,
        )

    def _read(
        self,
        lane: Sequence[Conversation | None],
        choice: BeamChoice,
        decoded: Decoded,
        sampling: Sampling,
        stopping: Stopping,
        length: int,
    ) -> tuple[list[tuple[list[Kept], int]], np.ndarray]:
        """What is kept, and the pages of the kept replies' rows."""
        size, nowhere = self.engine.sizes.page_size, self.engine.cache.num_pages
        pages = np.full((len(decoded.lengths), length // size), nowhere, np.int32)
        out = []
        for b in range(len(self.batch)):
            found = []
            for number, score in zip(
                choice.kept[b].tolist(), choice.kept_scores[b].tolist(), strict=True
            ):
                if score == -np.inf:
                    continue
                if number < self.beam_width:
                    found.append(Kept(number=number, reply=None, score=score))
                    continue
                r = b * self.beam_width * self.n + number - self.beam_width
                conversation = lane[r // self.n]
                assert conversation is not None
                row = Row(pages=[])
                row.take(
                    decoded.tokens[r, : decoded.lengths[r]],
                    decoded.log_probs[r, : decoded.lengths[r]],
                )
                row.kept = stopping.kept(row.tokens)
                reply = row.reply()
                self._adopt(conversation, reply, pages[r])
                beam = (number - self.beam_width) // self.n
                found.append(Kept(number=beam, reply=reply, score=score))
            first = b * self.beam_width * self.n
            tokens = int(decoded.lengths[first : first + self.beam_width * self.n].sum())
            out.append((found, tokens))
        return out, pages

    def _adopt(self, conversation: Conversation, reply: Reply, pages: np.ndarray) -> None:
        """Finds pages for a kept reply, if there are any; it could be read again."""
        cache = self.engine.cache
        piece = read_piece(conversation.last_token, reply)
        count = -(-len(piece) // cache.page_size)
        leaves = [] if conversation.leaf is None else [conversation.leaf]
        if all(entry.pages for leaf in leaves for entry in leaf.path()) and cache.reserve(
            leaves, count
        ):
            pages[:count] = own = cache.take(count)
            cache.adopt(conversation.leaf, piece, own)


def select_states(
    scorer: Engine,
    tasks: Sequence[tuple[Sequence[Sequence[Piece]], Sequence[float]]],
    *,
    n: int,
    beam_width: int,
) -> list[Choice]:
    """Scores new states and keeps the best `beam_width` of them and of finished beams.

    Reading what is new of them, scoring and selecting are one compiled program. (What its rows
    cannot hold is read first.)

    Args:
      tasks: Of each, the conversations of at most beam_width * n new states, and the finished
        beams' scores.
    """
    leaves = [[scorer.cache.find(pieces) for pieces in states] for states, _ in tasks]
    finished = [scores for _, scores in tasks]
    out: list[Choice] = []
    for first, end in scorer.batches(leaves, scorer.sizes.extend_rows):
        prepared = prepare_selection(scorer, leaves[first:end], finished[first:end], n, beam_width)
        choice = call_selection(scorer, *prepared)
        out += [
            [(k, score) for k, score in zip(kept, scores, strict=True) if score != -np.inf]
            for kept, scores, _ in zip(
                choice.kept.tolist(), choice.kept_scores.tolist(), range(first, end), strict=False
            )
        ]
    return out


def prepare_selection(
    scorer: Engine,
    leaves: Sequence[Sequence[Entry]],
    finished: Sequence[Sequence[float]],
    n: int,
    beam_width: int,
):
    """Reads all but the last portions, and puts on the device what `extend_select` takes."""
    flat = [leaf for own in leaves for leaf in own if leaf.readout is None]
    if not scorer.cache.reserve(flat):
        raise ValueError("pages are pinned by a decoder that is not done")
    while not scorer.completes(groups := scorer.ready(flat), flat):
        scorer.read_ready(groups)
    B, C = scorer.sizes.extend_rows, beam_width * n
    row_of = {leaf: row for row, leaf in scorer.rows_of(groups)}
    known = np.full((B, C), -np.inf, np.float32)
    read_at = np.zeros((B, C), np.int32)
    finished_scores = np.full((B, beam_width), -np.inf, np.float32)
    for b, (own, scores) in enumerate(zip(leaves, finished, strict=True)):
        finished_scores[b, : len(scores)] = scores
        for c, leaf in enumerate(own):
            known[b, c] = np.nan if leaf in row_of else leaf.score
            read_at[b, c] = row_of.get(leaf, 0)
    rows = scorer.next_portions(groups)
    return scorer.put((rows, known, read_at, finished_scores)), groups


def call_selection(scorer: Engine, arguments, groups: Sequence[Sequence[Entry]]) -> BeamChoice:
    """The compiled program, and what it leaves behind: pages, readouts."""
    rows, known, read_at, finished = arguments
    choice, read, new = extend_select(
        scorer.params, scorer.config, scorer.pool, rows, scorer.head, known, read_at, finished,
        readout=scorer.readout,
    )  # fmt: skip
    scorer.pool = commit(scorer.pool, new, rows.pages)
    choice, read = jax.device_get((choice, read))
    scorer.have_read(groups, read)
    return choice
