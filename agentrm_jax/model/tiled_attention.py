"""Causal attention in tiles of queries by keys, of which those that no query sees are left out.

Which tiles those are is known only with the data: half of them for a single sequence, most of them
for a tree, where a token sees its own path and no other branch. So for each tile of queries a loop
runs over the tiles of keys that are left, as many as there are, and merges what each adds to the
softmax; the backward pass computes the scores anew, tile by tile (FlashAttention: Dao et al. 2022).
Nothing as large as queries by keys is ever in memory.

Axis letters: B batch, T tokens, N heads, K KV heads, G query heads of each, H head width; I tiles
of a row, Q tokens of a tile, M = B * I.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_LEAST = -1e30  # a score that counts for nothing, of which differences are still numbers


def attend_tiles(
    q: jax.Array, k: jax.Array, v: jax.Array, until: jax.Array, size: int
) -> jax.Array:
    """Softmax attention: each query to the keys up to itself that still see it.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      until: [B, T] int32, the first token behind each key that does not see it; beyond the key.
      size: Tokens of a tile, at most (but for rounding).

    Returns:
      [B, T, N, H].
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    tiles = -(-T // size)
    size = -(-T // (8 * tiles)) * 8
    rows = (B * tiles, size)

    def in_tiles(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, tiles * size - T), *((0, 0) for _ in x.shape[2:])))
        return x.reshape(*rows, *x.shape[2:])

    # Heads before tokens: every product below then runs along memory.
    q = in_tiles(q * H**-0.5).reshape(*rows, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = (in_tiles(x).transpose(0, 2, 1, 3) for x in (k, v))
    out = _attend(q, k, v, in_tiles(until.astype(jnp.int32)).reshape(B, tiles, size))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, tiles * size, N, H)[:, :T]


def _pairs(until: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tiles of keys [B * I * I] that tiles of queries see, one tile of queries after another, and
    where those of each begin, and the last ones end: [B * I + 1]."""
    B, tiles, size = until.shape
    number = jnp.arange(tiles)
    sees = (number[:, None] >= number) & (number[:, None] * size < until.max(axis=2)[:, None])
    [found] = jnp.nonzero(sees.reshape(-1), size=sees.size, fill_value=0)
    ends = jnp.cumsum(sees.reshape(B * tiles, tiles).sum(axis=1))
    return found // tiles // tiles * tiles + found % tiles, jnp.pad(ends, (1, 0))


def _seen(until: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
    """[Q, Q] bool: which tokens of a tile of queries see which of a tile of keys."""
    tiles, size = until.shape[1:]
    within = jnp.arange(size)
    queries = (query % tiles * size + within)[:, None]
    return (queries >= key % tiles * size + within) & (queries < _at(until.reshape(-1, size), key))


def _at(x: jax.Array, tile: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, tile, keepdims=False)


def _put(x: jax.Array, tile: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, tile, 0)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, until: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attended values [M, K, G, Q, H], and the log-sum-exp of each query's scores."""
    keys, begins = _pairs(until)
    k = k.swapaxes(2, 3)

    def attend(tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, own_q = tile

        def merge(step: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            """Of each query: weighted values, largest score and sum of weights so far."""
            j = keys[step]
            out, largest, total = found
            scores = _dot("kgqh,khs->kgqs", own_q, _at(k, j))
            scores = jnp.where(_seen(until, i, j), scores, _LEAST)
            new = jnp.maximum(largest, scores.max(axis=-1))
            weights, keep = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
            added = _dot("kgqs,ksh->kgqh", weights.astype(v.dtype), _at(v, j))
            return out * keep[..., None] + added, new, total * keep + weights.sum(axis=-1)

        zeros = jnp.zeros(own_q.shape[:-1], jnp.float32)
        found = jnp.zeros(own_q.shape, jnp.float32), jnp.full_like(zeros, _LEAST), zeros
        out, largest, total = jax.lax.fori_loop(begins[i], begins[i + 1], merge, found)
        total = jnp.where(total == 0, 1, total)  # of queries that fill up a row
        return (out / total[..., None]).astype(v.dtype), largest + jnp.log(total)

    return jax.lax.map(attend, (jnp.arange(len(q)), q))


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, until: jax.Array) -> jax.Array:
    return _forward(q, k, v, until)[0]


def _attend_and_keep(
    q: jax.Array, k: jax.Array, v: jax.Array, until: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, normalizer = _forward(q, k, v, until)
    return out, (q, k, v, until, out, normalizer)


def _backward(
    kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, until, out, normalizer = kept
    keys, begins = _pairs(until)
    # What a change of all of a query's weights would do, which softmax takes from each.
    common = _dot("mkgqh,mkgqh->mkgq", gradient, out)
    k_turned, v_turned = k.swapaxes(2, 3), v.swapaxes(2, 3)

    def add_queries(sums: tuple[jax.Array, ...], tile: tuple[jax.Array, ...]):
        i, own_q, own, own_normalizer, own_common = tile
        # Sums over queries have the keys last, so that no tile of scores need be turned.
        q_turned, own_turned = (x.transpose(0, 3, 1, 2) for x in (own_q, own))

        def add(step: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dq, dk, dv = sums
            j = keys[step]
            scores = _dot("kgqh,khs->kgqs", own_q, _at(k_turned, j)) - own_normalizer[..., None]
            weights = jnp.where(_seen(until, i, j), jnp.exp(scores), 0)
            by_weight = _dot("kgqh,khs->kgqs", own, _at(v_turned, j)) - own_common[..., None]
            by_score = (weights * by_weight).astype(q.dtype)
            dq += _dot("kgqs,ksh->kgqh", by_score, _at(k, j))
            by_key = _dot("khgq,kgqs->khs", q_turned, by_score)
            by_value = _dot("khgq,kgqs->khs", own_turned, weights.astype(q.dtype))
            return dq, _put(dk, j, _at(dk, j) + by_key), _put(dv, j, _at(dv, j) + by_value)

        dq = jnp.zeros(own_q.shape, jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(begins[i], begins[i + 1], add, (dq, *sums))
        return (dk, dv), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_turned, v_turned))
    tiles = (jnp.arange(len(q)), q, gradient, normalizer, common)
    (dk, dv), dq = jax.lax.scan(add_queries, zeros, tiles)
    dk, dv = dk.swapaxes(2, 3), dv.swapaxes(2, 3)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_attend_and_keep, _backward)
