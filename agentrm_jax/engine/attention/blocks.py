"""Attention to pages block by block, for backends without a paged kernel (`xla`).

A loop reads `PAGE_BLOCK` pages of every sequence at a time, up to the longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention.parts import Part, Reader, attend_blocks
from agentrm_jax.engine.cache.pages import (
    PAGE_BLOCK,
    Context,
    PageTable,
    Pool,
    block_mask,
    read_block,
    shared_mask,
)


def own_blocks(pool: Pool, table: PageTable) -> Reader:
    """Returns attention of sequences to their own pages, read out of the pool by each layer."""
    return _read_blocks(
        pool, table, lambda i: block_mask(table, i, PAGE_BLOCK, pool.page_size)[:, None]
    )


def shared_blocks(pool: Pool, context: Context, sequence_of: jax.Array) -> Reader:
    """Returns attention of queries [K, 1, M, H] to shared prefixes, read by each layer.

    Args:
      sequence_of: [M] int32, the sequence of each query.
    """
    return _read_blocks(
        pool,
        context.shared,
        lambda i: shared_mask(context, i, PAGE_BLOCK, pool.page_size)[sequence_of],
    )


def _read_blocks(pool: Pool, table: PageTable, mask_of: Callable[[jax.Array], jax.Array]) -> Reader:
    def attention(l: int, q: jax.Array) -> Part:
        def read(i: jax.Array):
            k, v = (read_block(layer[l], table, i, PAGE_BLOCK) for layer in (pool.k, pool.v))
            return k.swapaxes(2, 3), v, mask_of(i)

        return attend_blocks(q, read, table.num_blocks(PAGE_BLOCK))

    return attention


def copied_shared_blocks(pool: Pool, context: Context, sequence_of: jax.Array) -> Reader:
    """Returns the same as `shared_blocks`, copied out of the pool once for all tokens to come.

    Args:
      sequence_of: [M] int32, the sequence of each query.
    """
    table = context.shared
    num_blocks = table.pages.shape[1] // PAGE_BLOCK
    used = table.num_blocks(PAGE_BLOCK)

    def copied(layer: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        def copy(i, blocks):
            return blocks.at[i].set(read_block(layer, table, i, PAGE_BLOCK).transpose(axes))

        shape = jax.eval_shape(
            lambda: read_block(layer, table, 0, PAGE_BLOCK).transpose(axes)
        ).shape
        return jax.lax.fori_loop(0, used, copy, jnp.zeros((num_blocks, *shape), layer.dtype))

    k = [copied(layer, (0, 1, 3, 2)) for layer in pool.k]
    v = [copied(layer, (0, 1, 2, 3)) for layer in pool.v]

    def attention(l: int, q: jax.Array) -> Part:
        def read(i: jax.Array):
            mask = shared_mask(context, i, PAGE_BLOCK, pool.page_size)[sequence_of]
            return k[l][i], v[l][i], mask

        return attend_blocks(q, read, used)

    return attention
