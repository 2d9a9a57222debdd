"""Beam steps over any number of tasks: the host's side of the programs in `beam`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from agentrm_jax.engine.beam import BeamChoice, InStepScorer, beam_step, extend_select
from agentrm_jax.engine.decode import Decoded
from agentrm_jax.engine.decoder import (
    Conversation,
    Reply,
    Request,
    Row,
    enter,
    make_rows,
    places,
    read_piece,
)
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.extend import ExtendRows
from agentrm_jax.engine.pages import commit
from agentrm_jax.engine.prefix_cache import Entry, Piece
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.engine.stopping import Stopping

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
    stop: int,
) -> list[tuple[list[Kept], int]]:
    """One compiled decode-score-select for each batch of tasks.

    Returns:
      For each task what is kept, best first, and the number of tokens decoded.
    """
    together = places(engine.sizes.decode_rows, beam_width * n)
    out: list[tuple[list[Kept], int]] = []
    for first in range(0, len(tasks), together):
        step = _Step(engine, scorer, tasks[first : first + together], together, n, beam_width)
        out.extend(step.run(sampling, Stopping(tokens=(stop,))))
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
        lane, arguments, length = self.prepare(sampling, stopping)
        choice, decoded, new = self.call(arguments, sampling, length)
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
            lane[place] = Conversation(0, request.key, leaf, end, last, rows)
        states = np.zeros((self.together, self.beam_width), np.int32)
        finished = np.full((self.together, self.beam_width), -np.inf, np.float32)
        for b, beams in enumerate(self.batch):
            states[b, : len(beams.states)] = beams.states
            finished[b, : len(beams.finished)] = beams.finished
        ends = stopping.ends(engine.config.vocab_size)
        rows = make_rows(engine, [lane], (self.n,), sampling, ends, 0)
        context = scorer.context([(leaf, leaf.end) for leaf in whole], len(lane), at)
        size = engine.sizes.page_size
        length = -(-sampling.max_tokens // size) * size
        rows = engine.put((rows, states, finished, np.int32(stopping.tokens[0])))
        return lane, (*rows, scorer.put(context)), length

    def call(self, arguments, sampling: Sampling, length: int):
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
            chunk=engine.chunk,
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

    Reading what is new of them, scoring and selecting are one compiled program. (What is missing
    before that is read first: states that lost their oldest steps, long observations.)

    Args:
      tasks: Of each, the conversations of at most beam_width * n new states, and the finished
        beams' scores.
    """
    together = max(1, scorer.sizes.extend_rows // (beam_width * n))
    out: list[Choice] = []
    for first in range(0, len(tasks), together):
        batch = tasks[first : first + together]
        arguments = _prepare_selection(scorer, batch, together, n, beam_width)
        choice = call_selection(scorer, arguments)
        out += [
            [(k, score) for k, score in zip(kept, scores, strict=True) if score != -np.inf]
            for kept, scores, _ in zip(
                choice.kept.tolist(), choice.kept_scores.tolist(), batch, strict=False
            )
        ]
    return out


def _prepare_selection(
    scorer: Engine,
    batch: Sequence[tuple[Sequence[Sequence[Piece]], Sequence[float]]],
    together: int,
    n: int,
    beam_width: int,
):
    """Reads all but the last pieces, and puts on the device what `extend_select` takes."""
    leaves = [[scorer.cache.find(pieces) for pieces in states] for states, _ in batch]
    flat = [leaf for own in leaves for leaf in own]
    if not scorer.cache.reserve(flat):
        raise ValueError("pages are pinned by a decoder that is not done")
    groups = [_by_parent(scorer, own, n, beam_width) for own in leaves]
    last = {leaf for own in groups for group in own for leaf in group}
    scorer.read_reserved([leaf for leaf in flat if leaf not in last])
    scorer.read_reserved([leaf.parent for leaf in last if leaf.parent is not None])
    G, C, T = together * beam_width, beam_width * n, scorer.sizes.extend_tokens
    tokens, lengths = np.zeros((G * n, T), np.int32), np.zeros(G * n, np.int32)
    pages = np.full((G * n, T // scorer.sizes.page_size), scorer.cache.num_pages, np.int32)
    starts, row_of = np.zeros(G, np.int32), {}
    for b, own in enumerate(groups):
        for g, group in enumerate(own, start=b * beam_width):
            starts[g] = group[0].start
            for r, leaf in enumerate(group, start=g * n):
                row_of[leaf] = r
                tokens[r, : len(leaf.tokens)], lengths[r] = leaf.tokens, len(leaf.tokens)
                pages[r, : len(leaf.pages)] = leaf.pages
    known = np.full((together, C), -np.inf, np.float32)
    read_at = np.zeros((together, C), np.int32)
    finished = np.full((together, beam_width), -np.inf, np.float32)
    for b, (own, (_, scores)) in enumerate(zip(leaves, batch, strict=True)):
        finished[b, : len(scores)] = scores
        for c, leaf in enumerate(own):
            known[b, c] = np.nan if leaf in row_of else leaf.score
            read_at[b, c] = row_of.get(leaf, 0)
    at = [b * beam_width + g for b, own in enumerate(groups) for g in range(len(own))]
    heads = [group[0] for own in groups for group in own]
    context = scorer.context([(leaf.parent, leaf.start) for leaf in heads], G, at)
    rows = ExtendRows(tokens=tokens, lengths=lengths, starts=starts, context=context, pages=pages)
    return scorer.put((rows, known, read_at, finished)), row_of


def call_selection(scorer: Engine, prepared) -> BeamChoice:
    """The compiled program, and what it leaves behind: pages, readouts."""
    (rows, known, read_at, finished), row_of = prepared
    choice, read, new = extend_select(
        scorer.params, scorer.config, scorer.pool, rows, scorer.head, known, read_at, finished,
        readout=scorer.readout,
    )  # fmt: skip
    scorer.pool = commit(scorer.pool, new, rows.pages)
    choice, read = jax.device_get((choice, read))
    for leaf, r in row_of.items():
        leaf.portions_read, leaf.readout = 1, float(read[r])
        scorer.usage.read += len(leaf.tokens)
    return choice


def _by_parent(scorer: Engine, leaves: Sequence[Entry], n: int, most: int) -> list[list[Entry]]:
    """States of which only the last piece is to be read, at once, in groups that follow the same
    pages. States that do not fit into `most` groups are left out."""
    groups: dict[Entry, list[list[Entry]]] = {}
    count = 0
    for leaf in dict.fromkeys(leaves):
        if leaf.parent is None or leaf.portions_read or scorer.cache.portions(leaf) > 1:
            continue
        own = groups.setdefault(leaf.parent, [])
        if own and len(own[-1]) < n:
            own[-1].append(leaf)
        elif count < most:
            own.append([leaf])
            count += 1
    return [group for own in groups.values() for group in own]
