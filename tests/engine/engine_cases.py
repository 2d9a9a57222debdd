"""A tiny model and some conversations for the engine's tests."""

from __future__ import annotations

import jax
import numpy as np

from agentrm_jax.engine.engine import EngineConfig, Request
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=61, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=48,
    tie_embeddings=True, max_positions=512,
)  # fmt: skip
SIZES = EngineConfig(
    context=256, decode_rows=8, extend_rows=4, extend_tokens=16, page_size=4, cache_tokens=4096
)
STOP = 3
SAMPLING = Sampling(temperature=1.0, max_tokens=10)


def weights(seed: int):
    """Larger weights than a fresh model's, so that attention has something to say."""
    return jax.tree.map(lambda x: 3.0 * x, parameters.init(jax.random.key(seed), CONFIG))


def conversation(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, CONFIG.vocab_size, size=n).astype(np.int32) for n in lengths]


def request(seed: int, *lengths: int) -> Request:
    key = np.random.default_rng(100 + seed).integers(0, 2**32, 2).astype(np.uint32)
    return Request(pieces=conversation(seed, *lengths), key=key)


REQUESTS = [request(0, 5), request(1, 20, 7, 1), request(2, 33, 16, 40, 9), request(3, 16, 4)]
