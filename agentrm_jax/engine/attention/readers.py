"""The attention of each backend, for prefill and for decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention import blocks, cudnn, pallas, tiles, triton, triton_prefill
from agentrm_jax.engine.attention.parts import (
    OWN_PAGES,
    SHARED_PREFIXES,
    AttendTo,
    Part,
    Reader,
    attend,
    by_kv_head,
    by_position,
    keys_last,
    merge,
    output,
)
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool
from agentrm_jax.engine.rows import PrefillRows
from agentrm_jax.model.attention import Backend
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import EightBits, Stored

_KERNELS = {"pallas": pallas, "triton": triton}
"""The backends with a kernel that reads pages by their numbers."""


def decode_own(pool: Pool, table: PageTable, tile: int, num_tiles: int) -> Reader:
    """Returns attention of decoding to the sequences' own pages.

    Args:
      tile: Pages of a tile.
      num_tiles: Most tiles of all sequences together.
    """
    if pool.backend.name in _KERNELS:
        return _KERNELS[pool.backend.name].own_pages(pool, table)
    return tiles.own_tiles(pool, table, tile, num_tiles)


def decode_shared(pool: Pool, context: Context, sequence_of: jax.Array) -> Reader:
    """Returns attention of decoding to shared prefixes: queries [K, 1, M, H] read them together.

    Args:
      sequence_of: [M] int32, the sequence of each query.
    """
    if pool.backend.name in _KERNELS:
        return _KERNELS[pool.backend.name].shared_pages(pool, context, sequence_of)
    return blocks.copied_shared_blocks(pool, context, sequence_of)


def decode_suffix(q: jax.Array, k: Stored, v: Stored, last: jax.Array, backend: Backend) -> Part:
    """Returns the part of queries [K, R, M, H] over what their rows have decoded in this call.

    Args:
      q: The queries.
      k: Keys [K, R, T, H].
      v: Values, of the same shape.
      last: int32 scalar, the last of the T tokens that is there.
      backend: The attention backend.
    """
    if backend.name == "triton":
        return triton.attend_rows(q, k, v, last + 1, backend)
    return attend(q, keys_last(k), v, jnp.arange(k.shape[2]) <= last)


def prefill_attention(
    config: LlamaConfig, pool: Pool, rows: PrefillRows, queries: jax.Array
) -> AttendTo:
    """Returns attention of prefill.

    Args:
      queries: [R, Q] int32, the index of each query's token in its row.
    """
    if pool.backend.name == "cudnn":
        return cudnn.contiguous_attention(pool, rows, queries)
    if pool.backend.name == "triton" and not isinstance(pool.k[0], EightBits):
        return triton_prefill.attention(config, pool, rows, queries)
    return _merged_attention(config, pool, rows, queries)


def _merged_attention(
    config: LlamaConfig, pool: Pool, rows: PrefillRows, queries: jax.Array
) -> AttendTo:
    """Attention to shared prefixes, own pages and new tokens, each a part, and then merged."""
    (R, Q), K, G = queries.shape, config.num_kv_heads, rows.starts.shape[0]
    shared_by = config.num_heads // K
    offset = jnp.arange(rows.most_tokens(pool.page_size))
    causal = (queries[..., None] >= offset) & (offset < rows.lengths[:, None, None])  # [R, Q, T]
    causal = jnp.repeat(causal, shared_by, axis=1)  # [R, Q * N / K, T]
    sequence_of = jnp.repeat(jnp.arange(G), (R // G) * Q * shared_by)
    if pool.backend.name in _KERNELS:
        kernel = _KERNELS[pool.backend.name]
        shared = kernel.shared_pages(pool, rows.context, sequence_of)
        own = kernel.own_pages(pool, rows.context.own)
    else:
        shared = blocks.shared_blocks(pool, rows.context, sequence_of)
        own = blocks.own_blocks(pool, rows.context.own)

    def attend_to(l: int, q: jax.Array, k: Stored, v: Stored) -> jax.Array:
        grouped = by_kv_head(q, K)  # [K, R, Q * N / K, H]
        k, v = (jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), x) for x in (k, v))
        new = attend(grouped, keys_last(k), v, causal)
        before = []
        for scope, num_groups, read in ((SHARED_PREFIXES, 1, shared), (OWN_PAGES, G, own)):
            with jax.named_scope(scope):
                part = read(l, grouped.reshape(K, num_groups, -1, q.shape[-1]))
            before.append(jax.tree.map(lambda x, y: x.reshape(y.shape), part, new))
        out = output(merge(merge(*before), new))
        return by_position(out, Q).astype(q.dtype)

    return attend_to
