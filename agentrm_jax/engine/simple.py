"""The engine without a cache: every token by a forward pass over the whole sequence.

`SimpleEngine` defines what the engine computes, and is slow. It uses the same random keys, so that
the engine generates the same replies and the same scores up to rounding. Read it first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.programs.model import Readout
from agentrm_jax.engine.programs.sampling import Filter, Sampling, sample
from agentrm_jax.engine.request import Reply, Request, Tokens, TokenSequence
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig

_PADDING = 64
"""Sequences are padded to multiples of this, so that few shapes are compiled."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SimpleEngine:
    """A model that generates and scores by full forward passes.

    Attributes:
      params: The stacked parameters, as training and checkpoints have them.
      config: The shape of the model.
      readout: For models that score: (head, hidden states [R, D]) to scores [R] float32.
      head: The parameters of the readout.
    """

    params: Any
    config: LlamaConfig
    readout: Readout | None = None
    head: Any = None

    def generate(
        self, requests: Sequence[Request], *, n: int, sampling: Sampling, stop: int
    ) -> list[list[Reply]]:
        """Samples n replies to each request, as `front.generate`."""
        return [[self._reply(request, b, sampling, stop) for b in range(n)] for request in requests]

    def _reply(self, request: Request, branch: int, sampling: Sampling, stop: int) -> Reply:
        """Branch `branch` of a request: token t is sampled with the key of (request, branch, t)."""
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(request.key)), branch)
        tokens: list[int] = []
        log_probs: list[float] = []
        prefix = np.concatenate(request.segments)
        for t in range(sampling.max_tokens):
            hidden = self.last_hidden(np.asarray([*prefix, *tokens], np.int32))
            token, log_prob = _sample(
                self.params, self.config, hidden, jax.random.fold_in(key, t),
                sampling.temperature, sampling.filter,
            )  # fmt: skip
            log_probs.append(float(log_prob))
            if int(token) == stop:
                return Reply(tokens=tuple(tokens), log_probs=tuple(log_probs), stopped=True)
            tokens.append(int(token))
        return Reply(tokens=tuple(tokens), log_probs=tuple(log_probs), stopped=False)

    def score(self, sequences: Sequence[TokenSequence]) -> list[float]:
        """Returns the readout at the last token of each sequence, as `front.score`."""
        assert self.readout is not None
        hidden = [self.last_hidden(np.concatenate(s.segments)) for s in sequences]
        return [float(self.readout(self.head, h[None])[0]) for h in hidden]

    def last_hidden(self, tokens: Tokens) -> jax.Array:
        """Returns the hidden state [D] at the last token, after the final norm."""
        padded = np.zeros(-(-len(tokens) // _PADDING) * _PADDING, np.int32)
        padded[: len(tokens)] = tokens
        return _hidden(self.params, self.config, padded)[len(tokens) - 1]


@functools.partial(jax.jit, static_argnames="config")
def _hidden(params: Any, config: LlamaConfig, tokens: jax.Array) -> jax.Array:
    """Hidden states [T, D] of tokens [T]; a token attends to the tokens before it."""
    positions = jnp.arange(tokens.shape[0])[None]
    return llama.forward(params, config, tokens[None], positions, jnp.ones_like(positions))[0]


@functools.partial(jax.jit, static_argnames=("config", "filter"))
def _sample(
    params: Any,
    config: LlamaConfig,
    hidden: jax.Array,
    key: jax.Array,
    temperature: float,
    filter: Filter,
) -> tuple[jax.Array, jax.Array]:
    """The token after a hidden state [D] and its log-probability."""
    logits = llama.logits(params, config, hidden[None])
    tokens, log_probs = sample(key[None], logits, jnp.full(1, temperature), filter)
    return tokens[0], log_probs[0]
