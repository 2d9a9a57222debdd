"""Attention to pages block by block, for backends without a paged kernel (`xla`).

A loop reads `PAGE_BLOCK` pages of every sequence at a time, up to the longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention.parts import Part, Reader, attend_blocks, keys_last
from agentrm_jax.engine.cache.pages import (
    PAGE_BLOCK,
    Context,
    PageTable,
    Pool,
    block_mask,
    read_block,
    shared_mask,
)
from agentrm_jax.model.eight_bits import Stored


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
            return keys_last(k), v, mask_of(i)

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

    def copied(layer: Stored, arranged: Callable[[Stored], Stored]) -> Stored:
        def copy(i, blocks):
            block = arranged(read_block(layer, table, i, PAGE_BLOCK))
            return jax.tree.map(lambda x, new: x.at[i].set(new), blocks, block)

        one = jax.eval_shape(lambda: arranged(read_block(layer, table, 0, PAGE_BLOCK)))
        empty = jax.tree.map(lambda x: jnp.zeros((num_blocks, *x.shape), x.dtype), one)
        return jax.lax.fori_loop(0, used, copy, empty)

    k = [copied(layer, keys_last) for layer in pool.k]
    v = [copied(layer, lambda x: x) for layer in pool.v]

    def attention(l: int, q: jax.Array) -> Part:
        def read(i: jax.Array):
            mask = shared_mask(context, i, PAGE_BLOCK, pool.page_size)[sequence_of]
            return *(jax.tree.map(lambda x: x[i], x) for x in (k[l], v[l])), mask

        return attend_blocks(q, read, used)

    return attention
