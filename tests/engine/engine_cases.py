"""A tiny model and some conversations for the engine's tests."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.engine import EngineConfig, Request
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.model import llama, parameters
from agentrm_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=48,
    tie_embeddings=True, max_positions=512,
)  # fmt: skip
SIZES = EngineConfig(
    context=256, decode_rows=8, extend_rows=4, extend_tokens=16, page_size=4, cache_tokens=4096
)
SMALL = dataclasses.replace(SIZES, cache_tokens=240)  # one conversation or two, not all
STOP = 228  # a token that this model likes
SAMPLING = Sampling(temperature=1.0, max_tokens=10)


@functools.cache
def weights(seed: int):
    """Larger weights than a fresh model's, so that attention has something to say."""
    rng = np.random.default_rng(seed)

    def draw(shape, scale):
        return np.ones(shape) if scale is None else 2 * scale * rng.standard_normal(shape)

    return jax.tree.map(
        lambda spec: jnp.float32(draw(spec.shape, spec.scale)),
        parameters.describe(CONFIG),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )


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
