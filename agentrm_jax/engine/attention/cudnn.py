"""Prefill attention with all keys of a sequence side by side, for kernels on NVIDIA GPUs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention.parts import AttendTo
from agentrm_jax.engine.cache.pages import Pool, block_mask, read_block
from agentrm_jax.engine.rows import PrefillRows
from agentrm_jax.model.attention import masked_attention
from agentrm_jax.model.eight_bits import Stored, decode

_DIVISORS = (8, 4, 2, 1)
"""The width of a page table is divided by these; the least width that holds all pages is read."""


def contiguous_attention(pool: Pool, rows: PrefillRows, queries: jax.Array) -> AttendTo:
    """Returns prefill attention over contiguous keys.

    Args:
      queries: [R, Q] int32, the index of each query's token in its row.
    """
    R, G, page_size = rows.lengths.shape[0], rows.starts.shape[0], pool.page_size
    T = rows.most_tokens(page_size)
    row, offset = jnp.divmod(jnp.arange(R // G * T), T)  # new tokens of a sequence
    of_row = jnp.repeat(jnp.arange(R // G), queries.shape[1])[:, None]
    at = queries.reshape(G, -1, 1)
    filled = offset < jnp.repeat(rows.lengths.reshape(G, -1), T, axis=1)[:, None]
    # [G, R / G * Q, R / G * T]; every query attends to itself, so that none is without keys
    new = (of_row == row) & ((at == offset) | ((at > offset) & filled))
    table = rows.context.joined()
    widths = [-(-table.pages.shape[1] // n) for n in _DIVISORS]
    used = jnp.max(jnp.sum(table.fills > 0, axis=1))
    narrowest = jnp.searchsorted(jnp.asarray(widths), used)

    def attend(width: int, l: int, q: jax.Array, k: Stored, v: Stored) -> jax.Array:
        """Attention to `width` pages and the new tokens; q, k, v are [G, R / G * Q or T, ...]."""

        def keys(layer: Stored, own: Stored) -> jax.Array:
            before = decode(read_block(layer, table, 0, width)).transpose(1, 2, 0, 3)
            return jnp.concatenate([before, decode(own)], axis=1)

        before = block_mask(table, 0, width, page_size)[:, None]
        before = jnp.broadcast_to(before, (*new.shape[:2], before.shape[2]))
        mask = jnp.concatenate([before, new], axis=2)
        return masked_attention(q, keys(pool.k[l], k), keys(pool.v[l], v), mask, pool.backend)

    def attend_to(l: int, q: jax.Array, k: Stored, v: Stored) -> jax.Array:
        branches = [functools.partial(attend, width, l) for width in widths]
        grouped = jax.tree.map(lambda x: x.reshape(G, -1, *x.shape[2:]), (q, k, v))
        return jax.lax.switch(narrowest, branches, *grouped).reshape(q.shape)

    return attend_to
