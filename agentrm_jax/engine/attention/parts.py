"""Attention in parts: exact softmax attention over pieces of the keys, merged in float32.

A part is what a query has gathered from some of the keys: the running maximum of the scores, the
sum of exponentials and the weighted sum of values. Parts merge exactly (log-sum-exp), so a prefix
that many branches share is read once and each branch adds its own suffix. A part whose keys are
all masked changes nothing, to the bit: results do not depend on how far a batch was padded.

Shapes: `X` stands for any leading batch axes (KV heads first), `M` queries that share the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a part without keys gives zeros and no NaN
_LEAST = -1e29  # maximum of such a part: behind it, what is masked weighs exp(-9e29) = 0


class Part(NamedTuple):
    """Attention over some of the keys, float32."""

    weighted: jax.Array  # [X, M, H] sum of exp(score - maximum) * value
    maximum: jax.Array  # [X, M]
    total: jax.Array  # [X, M] sum of exp(score - maximum)


Reader = Callable[[int, jax.Array], Part]
"""(layer, queries [K, G, M, H]) to what they gather from some pages."""


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Part:
    """Attention over some keys.

    Args:
      q: [X, M, H].
      k: [X, H, S]; with S last, the products with a few queries run along memory.
      v: [X, S, H].
      mask: Broadcast to [X, M, S]; keys where it is false are not seen.
    """
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("...mh,...hs->...ms", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask, scores, MASKED)
    maximum = jnp.maximum(scores.max(axis=-1), _LEAST)
    weights = jnp.exp(scores - maximum[..., None])
    weighted = jnp.einsum(
        "...ms,...sh->...mh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return Part(weighted, maximum, weights.sum(axis=-1))


def nothing(q: jax.Array) -> Part:
    """The neutral part for queries q [X, M, H]."""
    return Part(
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], MASKED, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )


def merge(a: Part, b: Part) -> Part:
    maximum = jnp.maximum(a.maximum, b.maximum)
    keep_a, keep_b = jnp.exp(a.maximum - maximum), jnp.exp(b.maximum - maximum)
    return Part(
        a.weighted * keep_a[..., None] + b.weighted * keep_b[..., None],
        maximum,
        a.total * keep_a + b.total * keep_b,
    )


def merge_along(parts: Part, axis: int) -> Part:
    """Merges the parts along a batch axis, each with its neighbour: parts of nothing behind the
    last change nothing, to the bit."""

    def every_other(first: int, size: int) -> Part:
        return Part(*(jax.lax.slice_in_dim(x, first, size, stride=2, axis=axis) for x in parts))

    while (size := parts.maximum.shape[axis]) > 1:
        even = size - size % 2
        merged = merge(every_other(0, even), every_other(1, even))
        if size % 2:
            last = (jax.lax.slice_in_dim(x, even, size, axis=axis) for x in parts)
            merged = Part(*(jnp.concatenate(x, axis) for x in zip(merged, last, strict=True)))
        parts = merged
    return Part(*(jnp.squeeze(x, axis) for x in parts))


def result(part: Part) -> jax.Array:
    """The attention output [X, M, H]. Queries without any key give zeros."""
    return part.weighted / jnp.maximum(part.total, 1e-30)[..., None]


def attend_chunks(
    q: jax.Array,
    read: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    num_chunks: jax.Array,
) -> Part:
    """Attention over chunk 0 .. num_chunks - 1 of the keys.

    Args:
      q: [X, M, H].
      read: Gives (k [X, H, S], v [X, S, H], mask broadcast to [X, M, S]) of a chunk.
      num_chunks: int32 scalar, known only at run time: a longer batch costs only what it holds.
    """
    return jax.lax.fori_loop(
        0, num_chunks, lambda c, part: merge(part, attend(q, *read(c))), nothing(q)
    )


def by_kv_head(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """[G, T, N, H] queries as [K, G, T * N / K, H]: those that share keys stand together."""
    G, T, N, H = q.shape
    q = q.reshape(G, T, num_kv_heads, N // num_kv_heads, H)
    return q.transpose(2, 0, 1, 3, 4).reshape(num_kv_heads, G, T * (N // num_kv_heads), H)


def by_position(out: jax.Array, num_queries: int) -> jax.Array:
    """The inverse of `by_kv_head`: [K, G, T * N / K, H] as [G, T, N, H]."""
    K, G, M, H = out.shape
    out = out.reshape(K, G, num_queries, M // num_queries, H)
    return out.transpose(1, 2, 0, 3, 4).reshape(G, num_queries, K * (M // num_queries), H)
