"""The models that are measured: shapes and random weights from a fixed seed."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params, ParamSpec

SHAPES = {
    "27m": LlamaConfig(
        vocab_size=8192, d_model=512, num_layers=8, num_heads=8, num_kv_heads=4, head_dim=64,
        d_ff=1408, tie_embeddings=True, max_positions=4096,
    ),
    "8b": LlamaConfig(
        vocab_size=128_256, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8,
        head_dim=128, d_ff=14_336, max_positions=8192,
    ),
    "tiny": LlamaConfig(
        vocab_size=320, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
        d_ff=48, tie_embeddings=True, max_positions=1024,
    ),
}  # fmt: skip
"""By name; 8b is Llama-3-8B."""

NEVER = -1
"""A stop token that no model has: replies are as long as asked."""


def make_params(config: LlamaConfig, dtype: Any = jnp.float32, seed: int = 0) -> Params:
    """Weights as a fresh model has them (with larger ones, rounding grows from layer to layer).

    float32 is drawn on the host, the same everywhere; another precision on the device, one matrix
    after another, so that a large model fits.
    """
    rng, count = np.random.default_rng(seed), itertools.count()

    def draw(spec: ParamSpec) -> jax.Array:
        if spec.scale is None:
            return jnp.ones(spec.shape, dtype)
        if dtype == jnp.float32:
            return jnp.asarray(spec.scale * rng.standard_normal(spec.shape, np.float32))
        key = jax.random.fold_in(jax.random.key(seed), next(count))
        return _normal(key, spec.scale, spec.shape, dtype)

    return jax.tree.map(
        draw, parameters.describe(config), is_leaf=lambda value: isinstance(value, ParamSpec)
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normal(key: jax.Array, scale: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.asarray(scale, dtype) * jax.random.normal(key, shape, dtype)


def make_head(config: LlamaConfig, seed: int = 1) -> Params:
    """A value head whose scores have a spread of about one."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(config.d_model, np.float32) / np.float32(config.d_model**0.5)
    return {"kernel": jnp.asarray(kernel), "bias": jnp.float32(0.0)}


def draw_tokens(config: LlamaConfig, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random tokens, int32."""
    return rng.integers(4, config.vocab_size, shape).astype(np.int32)
