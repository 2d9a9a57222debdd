"""A tiny model and some requests for the engine's tests."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from agentrm_jax.engine.request import Request
from agentrm_jax.engine.simple import SimpleEngine
from agentrm_jax.testing.models import CONFIG, SIZES, drawn

SMALL = dataclasses.replace(SIZES, cache_tokens=240)  # one conversation or two, not all
STOP = 285  # a token that this model likes


@functools.cache
def weights(seed: int):
    return drawn(np.random.default_rng(seed))


def simple(seed: int, **options) -> SimpleEngine:
    """The oracle: full forward passes."""
    return SimpleEngine(params=weights(seed), config=CONFIG, **options)


def assert_same_replies(found, wanted) -> None:
    """Equal tokens and ends; log-probabilities up to rounding."""
    for group, expected in zip(found, wanted, strict=True):
        for reply, other in zip(group, expected, strict=True):
            assert (reply.tokens, reply.stopped) == (other.tokens, other.stopped)
            np.testing.assert_allclose(reply.log_probs, other.log_probs, atol=1e-4)


def segments(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, CONFIG.vocab_size, size=n).astype(np.int32) for n in lengths]


def request(seed: int, *lengths: int) -> Request:
    key = np.random.default_rng(100 + seed).integers(0, 2**32, 2).astype(np.uint32)
    return Request(segments=segments(seed, *lengths), key=key)


REQUESTS = [request(0, 5), request(1, 20, 7, 1), request(2, 33, 16, 40, 9), request(3, 16, 4)]
