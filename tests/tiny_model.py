"""The smallest model and engine, for tests in several folders: programs are compiled once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=48,
    tie_embeddings=True, max_positions=512,
)  # fmt: skip
SIZES = EngineConfig(
    context=256,
    decode_rows=8,
    extend_rows=4,
    extend_tokens=16,
    page_size=4,
    cache_tokens=4096,
    decode_tokens=4,
    instruction_tokens=64,
)
SAMPLING = Sampling(temperature=1.0, max_tokens=10)


def drawn(rng: np.random.Generator):
    """Parameters larger than a fresh model's, so that attention has something to say."""

    def draw(shape, scale):
        return np.ones(shape) if scale is None else 2 * scale * rng.standard_normal(shape)

    return jax.tree.map(
        lambda spec: jnp.float32(draw(spec.shape, spec.scale)),
        parameters.describe(CONFIG),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )
