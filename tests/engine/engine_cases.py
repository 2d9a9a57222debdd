"""A tiny model and some conversations for the engine's tests."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_model import CONFIG, SIZES, drawn

from agentrm_jax.engine.schedule.scheduler import Request
from agentrm_jax.model import llama

SMALL = dataclasses.replace(SIZES, cache_tokens=240)  # one conversation or two, not all
STOP = 285  # a token that this model likes


@functools.cache
def weights(seed: int):
    return drawn(np.random.default_rng(seed))


@jax.jit
def dense_hidden(params, tokens):
    """Hidden states [T, D] of tokens [T]: plain attention over the whole sequence."""
    positions = jnp.arange(tokens.shape[0])[None]
    return llama.forward(params, CONFIG, tokens[None], positions, jnp.ones_like(positions))[0]


def dense_last(params, pieces) -> jax.Array:
    """The hidden state [D] at a conversation's last token."""
    tokens = np.concatenate(pieces)
    padded = np.zeros(160, np.int32)  # one shape for all; what follows is not seen
    padded[: len(tokens)] = tokens
    return dense_hidden(params, padded)[len(tokens) - 1]


def conversation(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, CONFIG.vocab_size, size=n).astype(np.int32) for n in lengths]


def request(seed: int, *lengths: int) -> Request:
    key = np.random.default_rng(100 + seed).integers(0, 2**32, 2).astype(np.uint32)
    return Request(pieces=conversation(seed, *lengths), key=key)


REQUESTS = [request(0, 5), request(1, 20, 7, 1), request(2, 33, 16, 40, 9), request(3, 16, 4)]
