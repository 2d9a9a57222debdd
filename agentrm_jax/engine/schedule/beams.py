"""Beam steps over any number of tasks: the host's side of the programs in `programs.select`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from agentrm_jax.engine.attention import tiles
from agentrm_jax.engine.cache.pages import Context
from agentrm_jax.engine.cache.prefix_cache import Node
from agentrm_jax.engine.cache.tables import TableRows
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.decode import DecodePlan
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.programs.select import BeamChoice, BeamRows, CandidateRows
from agentrm_jax.engine.request import Reply, Request, TokenSequence
from agentrm_jax.engine.rows import Decoded
from agentrm_jax.engine.schedule.batch import (
    BatchLayout,
    BatchShape,
    Branch,
    Group,
    RunningRequest,
)
from agentrm_jax.engine.schedule.scheduler import decode_rows, decoded_segment, find_prefix
from agentrm_jax.engine.schedule.stopping import Stopping

Choice = list[tuple[int, float]]
"""The selected beams of a task, best first: (number, score), finished beams numbered first."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beams:
    """One task's beams before a step.

    Attributes:
      requests: The live beams, at most `beam_width`.
      sequences: The same states as the scorer reads them; segments may be cut elsewhere.
      states: A number for each beam; beams with equal numbers continue the same state.
      finished: The scores of the finished beams.
    """

    requests: Sequence[Request]
    sequences: Sequence[TokenSequence]
    states: Sequence[int]
    finished: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A selected beam of a step.

    Attributes:
      number: The number of the request, or of the finished beam.
      reply: The reply to the request; None for a finished beam.
      score: Its score.
    """

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
    """Decodes n candidates of each beam, scores them at their action and selects the best.

    Each batch of tasks is one call of `programs.select.decode_select`.

    Args:
      engine: The policy.
      scorer: The reward model.
      tasks: The beams of each task.
      n: Candidates of each beam.
      beam_width: Beams to select.
      sampling: How candidates are sampled.
      stops: The tokens that end a reply; the scorer reads the first after every reply.

    Returns:
      For each task the selected beams, best first, and the number of tokens decoded.
    """
    branches = (beam_width * n,)
    [size] = BatchShape.of(engine.sizes.decode_rows, branches, engine.programs.data).capacities
    steps: list[tuple[list[Kept], int]] = []
    for first in range(0, len(tasks), size):
        step = _Step(engine, scorer, tasks[first : first + size], size, n, beam_width)
        steps.extend(step.run(sampling, Stopping(tokens=tuple(stops))))
    return steps


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """One call of `programs.select.decode_select` for at most `size` tasks."""

    engine: Engine
    scorer: Engine
    tasks: Sequence[Beams]
    size: int
    n: int
    beam_width: int

    def run(self, sampling: Sampling, stopping: Stopping) -> list[tuple[list[Kept], int]]:
        """Returns the selected beams of each task and the number of tokens decoded."""
        programs = self.engine.programs
        group, beams, plan = self.prepare(sampling, stopping)
        choice, decoded, new = programs.decode_select(self.scorer.programs, beams, plan)
        choice, decoded = jax.device_get((choice, decoded))
        pages = np.full(
            (len(decoded.lengths), plan.length // self.engine.sizes.page_size),
            self.engine.cache.num_pages,
            np.int32,
        )
        steps = [
            (self._kept(b, group, choice, decoded, stopping, pages), self._num_decoded(b, decoded))
            for b in range(len(self.tasks))
        ]
        programs.commit(new, programs.put(pages))
        for _, tokens in steps:
            self.engine.usage.decoded += tokens
            self.scorer.usage.read += tokens
        return steps

    def prepare(self, sampling: Sampling, stopping: Stopping) -> tuple[Group, BeamRows, DecodePlan]:
        """Reads the sequences and returns what the program takes, on the device."""
        engine, scorer = self.engine, self.scorer
        requests = [request for beams in self.tasks for request in beams.requests]
        prefixes = [find_prefix(engine, request, sampling.max_tokens) for request in requests]
        engine.prefill.run([prefix.leaf for prefix in prefixes if prefix.leaf is not None])
        leaves = [scorer.cache.find(s) for beams in self.tasks for s in beams.sequences]
        scorer.prefill.run(leaves)
        # Every task has `beam_width` rows side by side; those without a live beam are padding.
        numbers = [
            b * self.beam_width + p
            for b, beams in enumerate(self.tasks)
            for p in range(len(beams.requests))
        ]
        group: Group = [None] * (self.size * self.beam_width)
        for number, request, prefix in zip(numbers, requests, prefixes, strict=True):
            branches = [Branch(pages=[]) for _ in range(self.n)]
            group[number] = RunningRequest(request.key, *prefix, branches)
        states = np.zeros((self.size, self.beam_width), np.int32)
        finished = np.full((self.size, self.beam_width), -np.inf, np.float32)
        for b, beams in enumerate(self.tasks):
            states[b, : len(beams.states)] = beams.states
            finished[b, : len(beams.finished)] = beams.finished
        in_rows = [None if r is None else (r, branch) for r in group for branch in range(self.n)]
        layout = BatchLayout(groups=[group], rows=in_rows, slots=None)
        ends = stopping.ends(engine.config.vocab_size)
        rows = decode_rows(engine, layout, sampling, ends, 0)
        context = scorer.tables.context(
            TableRows(len(group), numbers, [(leaf, leaf.end) for leaf in leaves])
        )
        plan = self._plan(rows.contexts, sampling)
        rows, states, finished, stop = engine.programs.put(
            (rows, states, finished, np.int32(stopping.tokens[0]))
        )
        context = scorer.programs.put(context)
        return group, BeamRows(rows, context, states, finished, stop), plan

    def _plan(self, contexts: Sequence[Context], sampling: Sampling) -> DecodePlan:
        size, tile = self.engine.sizes.page_size, self.engine.tables.tile
        return DecodePlan(
            branches=(self.n,),
            length=-(-sampling.max_tokens // size) * size,
            tile=tile,
            num_tiles=tiles.bucket(contexts, tile, self.engine.programs.model.pool.backend),
            filter=sampling.filter,
        )

    def _kept(
        self,
        b: int,
        group: Group,
        choice: BeamChoice,
        decoded: Decoded,
        stopping: Stopping,
        pages: np.ndarray,
    ) -> list[Kept]:
        """The selected beams of task `b`; the pages of the replies' rows are filled in."""
        kept = []
        for number, score in zip(
            choice.selected[b].tolist(), choice.selected_scores[b].tolist(), strict=True
        ):
            if score == -np.inf:
                continue
            if number < self.beam_width:
                kept.append(Kept(number=number, reply=None, score=score))
                continue
            candidate = number - self.beam_width
            r = b * self.beam_width * self.n + candidate
            request = group[r // self.n]
            assert request is not None
            branch, count = Branch(pages=[]), decoded.lengths[r]
            branch.append(decoded.tokens[r, :count], decoded.log_probs[r, :count])
            branch.reply_length = stopping.reply_length(branch.tokens)
            reply = branch.reply()
            self._insert(request, reply, pages[r])
            kept.append(Kept(number=candidate // self.n, reply=reply, score=score))
        return kept

    def _num_decoded(self, b: int, decoded: Decoded) -> int:
        first = b * self.beam_width * self.n
        return int(decoded.lengths[first : first + self.beam_width * self.n].sum())

    def _insert(self, request: RunningRequest, reply: Reply, pages: np.ndarray) -> None:
        """Finds pages for a selected reply, if there are any; it could be read again."""
        cache = self.engine.cache
        segment = decoded_segment(request.last_token, reply)
        count = -(-len(segment) // cache.page_size)
        leaves = [] if request.leaf is None else [request.leaf]
        resident = all(node.pages for leaf in leaves for node in leaf.path())
        if resident and cache.reserve(leaves, count):
            pages[:count] = own = cache.allocate(count)
            cache.insert(request.leaf, segment, own)


def select_states(
    scorer: Engine,
    tasks: Sequence[tuple[Sequence[TokenSequence], Sequence[float]]],
    *,
    n: int,
    beam_width: int,
) -> list[Choice]:
    """Scores new states and selects the best of them and of the finished beams.

    Reading what is new of the states, scoring and selecting are one call of
    `programs.select.prefill_select`. What its rows cannot hold is read before.

    Args:
      scorer: The reward model.
      tasks: For each task, at most beam_width * n new states and the scores of finished beams.
      n: Candidates of each beam.
      beam_width: Beams to select.

    Returns:
      For each task (number, score) of the selected beams, best first, then those of the others.
      Finished beams are numbered from 0, new states from `beam_width`.
    """
    leaves = [[scorer.cache.find(state) for state in states] for states, _ in tasks]
    finished = [scores for _, scores in tasks]
    choices: list[Choice] = []
    for first, end in scorer.prefill.batches(leaves, scorer.sizes.extend_rows):
        candidates, groups = prepare_selection(
            scorer, leaves[first:end], finished[first:end], n, beam_width
        )
        choice = call_selection(scorer, candidates, groups)
        selected = choice.selected[: end - first].tolist()
        selected_scores = choice.selected_scores[: end - first].tolist()
        scores = choice.scores[: end - first].tolist()
        for number, numbers, values, own in zip(
            range(first, end), selected, selected_scores, scores, strict=True
        ):
            members = [*enumerate(finished[number]), *enumerate(own, start=beam_width)]
            others = [m for m in members if m[0] not in numbers and m[1] > -np.inf]
            best = [
                (k, value) for k, value in zip(numbers, values, strict=True) if value != -np.inf
            ]
            choices.append(best + sorted(others, key=lambda member: -member[1]))
    return choices


def prepare_selection(
    scorer: Engine,
    leaves: Sequence[Sequence[Node]],
    finished: Sequence[Sequence[float]],
    n: int,
    beam_width: int,
) -> tuple[CandidateRows, list[list[Node]]]:
    """Reads all but the last chunks and returns what the program takes, on the device.

    Args:
      scorer: The reward model.
      leaves: The new states of each task.
      finished: The scores of each task's finished beams.
      n: Candidates of each beam.
      beam_width: Beams to select.

    Returns:
      The rows, and the groups of nodes that they read.

    Raises:
      ValueError: Too many pages are pinned.
    """
    prefill = scorer.prefill
    unread = [leaf for states in leaves for leaf in states if leaf.readout is None]
    if not scorer.cache.reserve(unread):
        raise ValueError("the pages are pinned by a scheduler that is not done")
    while not prefill.completes(groups := prefill.ready(unread), unread):
        prefill.run_batch(groups)
    B, C = scorer.sizes.extend_rows, beam_width * n
    row_of_leaf = {leaf: row for row, leaf in prefill.row_numbers(groups)}
    known = np.full((B, C), -np.inf, np.float32)
    row_of = np.zeros((B, C), np.int32)
    finished_scores = np.full((B, beam_width), -np.inf, np.float32)
    for b, (states, scores) in enumerate(zip(leaves, finished, strict=True)):
        finished_scores[b, : len(scores)] = scores
        for c, leaf in enumerate(states):
            known[b, c] = np.nan if leaf in row_of_leaf else leaf.score
            row_of[b, c] = row_of_leaf.get(leaf, 0)
    candidates = CandidateRows(prefill.rows(groups), known, row_of, finished_scores)
    return scorer.programs.put(candidates), groups


def call_selection(
    scorer: Engine, candidates: CandidateRows, groups: Sequence[Sequence[Node]]
) -> BeamChoice:
    """Runs the program and records what it has read and scored."""
    choice, read = scorer.programs.prefill_select(candidates)
    scorer.prefill.record(groups, read)
    return choice
