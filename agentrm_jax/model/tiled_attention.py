"""Causal attention in tiles of queries and keys; tiles in which all pairs are masked are skipped.

Which tiles those are is known only with the data: half of them for a single sequence, most of them
for a tree, in which a token attends to its own path and to no other branch. For each tile of
queries a loop runs over the remaining tiles of keys and merges their contributions to the softmax;
the backward pass recomputes the scores tile by tile (FlashAttention: Dao et al. 2022). No array of
queries by keys is ever in memory.

Axis letters: B batch, T tokens, N heads, K KV heads, G query heads of each, H head width; I tiles
of a row, Q tokens of a tile, M = B * I.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LEAST = -1e30  # score of a masked pair; unlike infinity, differences of it are numbers


def attend_tiles(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    visible_until: Int[Array, "batch length"],
    size: int,
) -> Float[Array, "batch length heads head_dim"]:
    """Returns the softmax attention of each query to the visible keys at or before it.

    Args:
      q: [B, T, N, H] queries.
      k: [B, T, K, H] keys.
      v: [B, T, K, H] values.
      visible_until: [B, T] int32, for each key the first later position that does not attend to it:
        the end of its segment or of its subtree.
      size: Largest number of tokens of a tile, before it is rounded up to a multiple of 8.

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

    # Heads come before tokens: every product below then reads memory in order.
    q = in_tiles(q * H**-0.5).reshape(*rows, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = (in_tiles(x).transpose(0, 2, 1, 3) for x in (k, v))
    out = _attend(q, k, v, in_tiles(visible_until.astype(jnp.int32)).reshape(B, tiles, size))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, tiles * size, N, H)[:, :T]


def _pairs(visible_until: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the pairs of tiles that are not wholly masked, sorted by their tile of queries.

    Returns:
      The tile of keys of each pair [B * I * I], and the offsets [B * I + 1] at which the pairs of
      each tile of queries begin; the last offset is the number of pairs.
    """
    B, tiles, size = visible_until.shape
    number = jnp.arange(tiles)
    latest = visible_until.max(axis=2)[:, None]
    needed = (number[:, None] >= number) & (number[:, None] * size < latest)
    [pairs] = jnp.nonzero(needed.reshape(-1), size=needed.size, fill_value=0)
    ends = jnp.cumsum(needed.reshape(B * tiles, tiles).sum(axis=1))
    return pairs // tiles // tiles * tiles + pairs % tiles, jnp.pad(ends, (1, 0))


def _tile_mask(visible_until: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the mask of a tile of queries and a tile of keys, [Q, Q] bool."""
    tiles, size = visible_until.shape[1:]
    within = jnp.arange(size)
    queries = (query % tiles * size + within)[:, None]
    ends = _tile(visible_until.reshape(-1, size), key)
    return (queries >= key % tiles * size + within) & (queries < ends)


def _tile(x: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, number, keepdims=False)


def _with_tile(x: jax.Array, number: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, number, 0)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, visible_until: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns attended values [M, K, G, Q, H] and the log-sum-exp of each query's scores."""
    keys, begins = _pairs(visible_until)
    k = k.swapaxes(2, 3)

    def attend(tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, q_tile = tile

        def merge(step: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            """Updates weighted values, largest score and sum of weights of each query."""
            j = keys[step]
            out, largest, total = so_far
            scores = _dot("kgqh,khs->kgqs", q_tile, _tile(k, j))
            scores = jnp.where(_tile_mask(visible_until, i, j), scores, _LEAST)
            new = jnp.maximum(largest, scores.max(axis=-1))
            weights, keep = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
            added = _dot("kgqs,ksh->kgqh", weights.astype(v.dtype), _tile(v, j))
            return out * keep[..., None] + added, new, total * keep + weights.sum(axis=-1)

        zeros = jnp.zeros(q_tile.shape[:-1], jnp.float32)
        start = jnp.zeros(q_tile.shape, jnp.float32), jnp.full_like(zeros, _LEAST), zeros
        out, largest, total = jax.lax.fori_loop(begins[i], begins[i + 1], merge, start)
        total = jnp.where(total == 0, 1, total)  # padding at the end of a row
        return (out / total[..., None]).astype(v.dtype), largest + jnp.log(total)

    return jax.lax.map(attend, (jnp.arange(len(q)), q))


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, visible_until: jax.Array) -> jax.Array:
    return _forward(q, k, v, visible_until)[0]


def _attend_and_keep(
    q: jax.Array, k: jax.Array, v: jax.Array, visible_until: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, normalizer = _forward(q, k, v, visible_until)
    return out, (q, k, v, visible_until, out, normalizer)


def _backward(
    kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, visible_until, out, normalizer = kept
    keys, begins = _pairs(visible_until)
    # The gradient of a change of all weights of a query, which softmax subtracts from each.
    common = _dot("mkgqh,mkgqh->mkgq", gradient, out)
    k_turned, v_turned = k.swapaxes(2, 3), v.swapaxes(2, 3)

    def add_queries(sums: tuple[jax.Array, ...], tile: tuple[jax.Array, ...]):
        i, q_tile, gradient_tile, normalizer_tile, common_tile = tile
        # Sums over queries have the keys last, so that no tile of scores is transposed.
        q_turned, gradient_turned = (x.transpose(0, 3, 1, 2) for x in (q_tile, gradient_tile))

        def add(step: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dq, dk, dv = sums
            j = keys[step]
            scores = _dot("kgqh,khs->kgqs", q_tile, _tile(k_turned, j)) - normalizer_tile[..., None]
            weights = jnp.where(_tile_mask(visible_until, i, j), jnp.exp(scores), 0)
            by_weight = (
                _dot("kgqh,khs->kgqs", gradient_tile, _tile(v_turned, j)) - common_tile[..., None]
            )
            by_score = (weights * by_weight).astype(q.dtype)
            dq += _dot("kgqs,ksh->kgqh", by_score, _tile(k, j))
            by_key = _dot("khgq,kgqs->khs", q_turned, by_score)
            by_value = _dot("khgq,kgqs->khs", gradient_turned, weights.astype(q.dtype))
            return (
                dq,
                _with_tile(dk, j, _tile(dk, j) + by_key),
                _with_tile(dv, j, _tile(dv, j) + by_value),
            )

        dq = jnp.zeros(q_tile.shape, jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(begins[i], begins[i + 1], add, (dq, *sums))
        return (dk, dv), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_turned, v_turned))
    tiles = (jnp.arange(len(q)), q, gradient, normalizer, common)
    (dk, dv), dq = jax.lax.scan(add_queries, zeros, tiles)
    dk, dv = dk.swapaxes(2, 3), dv.swapaxes(2, 3)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_attend_and_keep, _backward)
