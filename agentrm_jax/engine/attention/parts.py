"""Attention in parts: exact softmax attention over some of the keys, merged in float32.

A part is what a query has accumulated from some of the keys: the running maximum of the scores, the
sum of exponentials and the weighted sum of values (as in flash decoding). Parts merge exactly
(log-sum-exp), so a prefix that many branches share is read once and each branch adds its own
suffix. A part whose keys are all masked changes nothing, to the bit: results do not depend on the
padding of a batch.

Shapes: `X` stands for any leading batch axes (KV heads first), `M` queries that share the keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from agentrm_jax.model.eight_bits import EightBits, Stored, split

OWN_PAGES, SHARED_PREFIXES, TAILS = "own_pages", "shared_prefixes", "tails"
SUFFIX = "suffix"
"""Named scopes of attention to pages: `agentrm plan` counts the bytes of kernels by them."""

MASKED = -1e30  # finite, so that a part without keys gives zeros and no NaN
_LEAST = -1e29  # least maximum of a part: masked keys weigh exp(-9e29) = 0


class Part(NamedTuple):
    """Attention over some of the keys, float32.

    Attributes:
      weighted: [X, M, H] sum of exp(score - maximum) * value.
      maximum: [X, M].
      total: [X, M] sum of exp(score - maximum).
    """

    weighted: jax.Array
    maximum: jax.Array
    total: jax.Array


Reader = Callable[[int, jax.Array], Part]
"""(layer, queries [K, G, M, H]) to their part over some pages."""

AttendTo = Callable[[int, jax.Array, Stored, Stored], jax.Array]
"""(layer, q [R, Q, N, H], new k and v [R, T, K, H]) to the attention output [R, Q, N, H]."""


def keys_last(x: Stored) -> Stored:
    """Returns keys [X, S, H] as [X, H, S]: with S last, products run along memory.

    Scales of keys in 8 bits stay [X, S].
    """
    if isinstance(x, EightBits):
        return dataclasses.replace(x, values=x.values.swapaxes(-1, -2))
    return x.swapaxes(-1, -2)


def attend(q: jax.Array, k: Stored, v: Stored, mask: jax.Array) -> Part:
    """Returns the part of queries over some keys.

    Scores are multiplied by the scales of keys in 8 bits, and weights by those of values.

    Args:
      q: [X, M, H].
      k: [X, H, S], from `keys_last`; scales [X, S].
      v: [X, S, H]; scales [X, S].
      mask: Broadcast to [X, M, S]; false masks a key.
    """
    scale = q.shape[-1] ** -0.5
    (k, k_scales), (v, v_scales) = split(k, q.dtype), split(v, q.dtype)
    scores = jnp.einsum("...mh,...hs->...ms", q, k, preferred_element_type=jnp.float32) * scale
    scores = scores if k_scales is None else scores * k_scales[..., None, :]
    scores = jnp.where(mask, scores, MASKED)
    maximum = jnp.maximum(scores.max(axis=-1), _LEAST)
    weights = jnp.exp(scores - maximum[..., None])
    factors = weights if v_scales is None else weights * v_scales[..., None, :]
    weighted = jnp.einsum(
        "...ms,...sh->...mh", factors.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return Part(weighted, maximum, weights.sum(axis=-1))


def empty_part(q: jax.Array) -> Part:
    """Returns the neutral part for queries q [X, M, H]."""
    return Part(
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], MASKED, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )


def declared_bytes(fixed: int, paged: int):
    """Returns a context in which kernels declare what they move: the compiler sees only a call.

    Args:
      fixed: Bytes of queries, results and tables.
      paged: Bytes of the pages that are read if all page tables are full.
    """
    return set_xla_metadata(bytes_fixed=str(fixed), bytes_paged=str(paged))


def merge(a: Part, b: Part) -> Part:
    """Returns the part over the keys of both."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    keep_a, keep_b = jnp.exp(a.maximum - maximum), jnp.exp(b.maximum - maximum)
    return Part(
        a.weighted * keep_a[..., None] + b.weighted * keep_b[..., None],
        maximum,
        a.total * keep_a + b.total * keep_b,
    )


def merge_along(parts: Part, axis: int) -> Part:
    """Merges the parts along a batch axis, each with its neighbour.

    Empty parts after the last one change nothing, to the bit.
    """

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


def output(part: Part) -> jax.Array:
    """Returns the attention output [X, M, H]; zeros for queries without any key."""
    return part.weighted / jnp.maximum(part.total, 1e-30)[..., None]


def attend_blocks(
    q: jax.Array,
    read: Callable[[jax.Array], tuple[Stored, Stored, jax.Array]],
    num_blocks: jax.Array,
) -> Part:
    """Returns the part of queries over blocks 0 .. num_blocks - 1 of the keys.

    Args:
      q: [X, M, H].
      read: A block's (k [X, H, S], v [X, S, H], mask broadcast to [X, M, S]), as for `attend`.
      num_blocks: int32 scalar, known only at run time: the cost follows the number of used pages.
    """
    return jax.lax.fori_loop(
        0, num_blocks, lambda i, part: merge(part, attend(q, *read(i))), empty_part(q)
    )


def by_kv_head(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """Returns queries [G, T, N, H] as [K, G, T * N / K, H]: grouped by the keys that they share."""
    G, T, N, H = q.shape
    q = q.reshape(G, T, num_kv_heads, N // num_kv_heads, H)
    return q.transpose(2, 0, 1, 3, 4).reshape(num_kv_heads, G, T * (N // num_kv_heads), H)


def by_position(out: jax.Array, num_queries: int) -> jax.Array:
    """Returns [K, G, T * N / K, H] as [G, T, N, H]: the inverse of `by_kv_head`."""
    K, G, M, H = out.shape
    out = out.reshape(K, G, num_queries, M // num_queries, H)
    return out.transpose(1, 2, 0, 3, 4).reshape(G, num_queries, K * (M // num_queries), H)
