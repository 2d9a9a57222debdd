"""Engines set up for what is measured, with everything before the clock starts read."""

from __future__ import annotations

import dataclasses

import numpy as np

from agentrm_jax.engine import front
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import Reply, Request, TokenSequence
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.model.value import readout
from benchmarks import models

PAGE = 16


def pages(tokens: int) -> int:
    """Returns as many tokens as whole pages hold."""
    return -(-tokens // PAGE) * PAGE


def decoding_engine(
    params: Params,
    config: LlamaConfig,
    prompts: np.ndarray,
    rows: int,
    max_tokens: int,
    attention: str = "xla",
) -> Engine:
    """An engine for replies to the prompts [G, T], which are read except for their last tokens.

    Args:
      rows: Most replies at once.
      attention: The attention backend.
    """
    sizes = EngineConfig(
        context=prompts.shape[1] + max_tokens,
        decode_rows=rows,
        decode_tokens=pages(max_tokens),
        extend_rows=8,
        page_size=PAGE,
        cache_tokens=2 * len(prompts) * pages(prompts.shape[1]) + 4 * rows * pages(max_tokens),
        max_segments=4,
        instruction_tokens=1,
        attention=attention,
    )
    engine = Engine(params, config, sizes)
    heads = [TokenSequence(segments=[prompt[:-1]]) for prompt in prompts]
    engine.prefill.run(list(map(engine.cache.find, heads)))
    return engine


class Branches:
    """n replies of fixed length to each of some prompts [G, T], in one batch."""

    def __init__(
        self, engine: Engine, prompts: np.ndarray, n: int, max_tokens: int, temperature: float = 1.0
    ) -> None:
        self.prompts, self.n = prompts, n
        self.rows = len(prompts) * n
        engine.sizes = dataclasses.replace(engine.sizes, decode_rows=self.rows)
        self._scheduler = Scheduler(
            engine,
            Sampling(temperature=temperature, max_tokens=max_tokens),
            Stopping(tokens=(models.NEVER,)),
            [n],
        )

    def __call__(self, number: int, prompts: np.ndarray | None = None) -> list[list[Reply]]:
        """Replies that depend on the number."""
        tickets = [
            self._scheduler.submit(
                Request(segments=[prompt], key=np.asarray([g, number], np.uint32)), self.n
            )
            for g, prompt in enumerate(self.prompts if prompts is None else prompts)
        ]
        found: dict[int, list[Reply]] = {}
        while len(found) < len(tickets):
            found.update(self._scheduler.collect())
        return [found[ticket] for ticket in tickets]


class Candidates:
    """Scores of n candidates of T tokens behind each of some contexts [G, S], in one batch."""

    def __init__(
        self,
        params: Params,
        head: Params,
        config: LlamaConfig,
        contexts: np.ndarray,
        n: int,
        tokens: int,
        attention: str = "xla",
    ) -> None:
        G, S = contexts.shape
        sizes = EngineConfig(
            context=S + pages(tokens),
            decode_rows=8,
            decode_tokens=pages(tokens),
            extend_rows=G * n,
            extend_tokens=pages(tokens),
            extend_batch=G * n * pages(tokens),
            siblings=n,
            page_size=PAGE,
            # A call may hold half of the pages.
            cache_tokens=2 * G * n * (pages(S) + 3 * pages(tokens)),
            max_segments=4,
            instruction_tokens=1,
            attention=attention,
        )
        self.engine = Engine(params, config, sizes, readout=readout, head=head)
        self.contexts = contexts
        front.score(self.engine, [TokenSequence(segments=[context]) for context in contexts])

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """[G, n] of candidates [G, n, T] that were not scored before."""
        sequences = [
            TokenSequence(segments=[context, candidate])
            for context, own in zip(self.contexts, candidates, strict=True)
            for candidate in own
        ]
        return np.asarray(front.score(self.engine, sequences)).reshape(candidates.shape[:2])
