"""Beam steps over any number of tasks: the host's side of `beam.beam_step`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.beam import BeamChoice, InStepScorer, beam_step
from agentrm_jax.engine.engine import Engine, Reply, Request, as_replies
from agentrm_jax.engine.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beams:
    """One task's beams before a step.

    Attributes:
      requests: The live ones, at most `beam_width`.
      states: For each, a number; equal numbers stand in the same state.
      finished: Scores of the finished ones.
    """

    requests: Sequence[Request]
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
    together = engine.places(beam_width * n)
    out: list[tuple[list[Kept], int]] = []
    for first in range(0, len(tasks), together):
        batch = tasks[first : first + together]
        out.extend(_step(engine, scorer, batch, together, n, beam_width, sampling, stop))
    return out


def _step(
    engine: Engine,
    scorer: Engine,
    batch: Sequence[Beams],
    together: int,
    n: int,
    beam_width: int,
    sampling: Sampling,
    stop: int,
) -> list[tuple[list[Kept], int]]:
    # Every task has `beam_width` places side by side; those without a live beam are padding.
    places = [
        b * beam_width + p for b, beams in enumerate(batch) for p in range(len(beams.requests))
    ]
    requests = [request for beams in batch for request in beams.requests]
    slots = together * beam_width
    groups = engine.groups(requests, places, slots, sampling, stop)
    prefix = scorer.whole_prefixes(requests, places, slots)
    states = np.zeros((together, beam_width), np.int32)
    finished = np.full((together, beam_width), -np.inf, np.float32)
    for b, beams in enumerate(batch):
        states[b, : len(beams.states)] = beams.states
        finished[b, : len(beams.finished)] = beams.finished
    assert scorer.readout is not None
    choice = beam_step(
        engine.params,
        engine.config,
        engine.pool,
        groups,
        InStepScorer(
            params=scorer.params,
            head=scorer.head,
            pool=scorer.pool,
            config=scorer.config,
            readout=scorer.readout,
        ),
        prefix,
        jnp.asarray(states),
        jnp.asarray(finished),
        n=n,
        length=sampling.max_tokens,
        chunk=engine.chunk,
        filter=sampling.filter,
    )
    return _read_choice(engine, scorer, choice, batch, n, beam_width)


def _read_choice(
    engine: Engine,
    scorer: Engine,
    choice: BeamChoice,
    batch: Sequence[Beams],
    n: int,
    beam_width: int,
) -> list[tuple[list[Kept], int]]:
    replies = as_replies(choice.replies, len(batch) * beam_width)
    kept, scores = jax.device_get((choice.kept, choice.kept_scores))
    out = []
    for b, beams in enumerate(batch):
        found = []
        for number, score in zip(kept[b].tolist(), scores[b].tolist(), strict=True):
            if score == -np.inf:
                continue
            if number >= beam_width * n:
                found.append(Kept(number=number - beam_width * n, reply=None, score=score))
            else:
                beam, branch = divmod(number, n)
                reply = replies[b * beam_width + beam][branch]
                found.append(Kept(number=beam, reply=reply, score=score))
        own = replies[b * beam_width : b * beam_width + len(beams.requests)]
        decoded = sum(len(reply.log_probs) for group in own for reply in group)
        engine.usage.decoded += decoded
        scorer.usage.read += decoded
        out.append((found, decoded))
    return out
