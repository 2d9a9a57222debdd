"""Chunked prefill: reads new tokens behind a cached prefix and writes their pages.

The one function behind prompts, observations and the reward model's scores.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention import (
    attend,
    attend_chunks,
    by_kv_head,
    by_position,
    merge,
    result,
)
from agentrm_jax.engine.pages import PageTable, Pool, chunk_mask, commit, read_chunk
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig

CHUNK = 8
"""Pages of prefix that attention reads at a time."""


@flax.struct.dataclass
class ExtendRows:
    """New tokens for R conversations; unused rows have length 0.

    Attributes:
      tokens: [R, T] int32.
      lengths: [R] int32, how many of the T are tokens.
      starts: [R] int32, position of the first one: what the prefix holds.
      prefix: The pages of the prefixes.
      pages: [R, T / page_size] int32, where to write; a number past the pool is not written.
    """

    tokens: jax.Array
    lengths: jax.Array
    starts: jax.Array
    prefix: PageTable
    pages: jax.Array


def read_rows(params, config: LlamaConfig, pool: Pool, rows: ExtendRows):
    """Runs the model over the rows.

    Returns:
      Hidden states [R, T, D] after the final norm, and each layer's new (k, v) [R, T, K, H].
    """
    T, K = rows.tokens.shape[1], config.num_kv_heads
    positions = rows.starts[:, None] + jnp.arange(T)
    num_chunks = rows.prefix.num_chunks(CHUNK)
    offset = jnp.arange(T)
    causal = (offset[:, None] >= offset) & (offset < rows.lengths[:, None, None])  # [R, T, T]
    causal = jnp.repeat(causal, config.num_heads // K, axis=1)  # [R, T * N / K, T]

    def attend_to(pool_k: jax.Array, pool_v: jax.Array):
        def read(c: jax.Array):
            mask = chunk_mask(rows.prefix, c, CHUNK, pool.page_size)[None, :, None]
            return (
                read_chunk(pool_k, rows.prefix, c, CHUNK).swapaxes(2, 3),
                read_chunk(pool_v, rows.prefix, c, CHUNK),
                mask,
            )

        def attention(q: jax.Array, k: jax.Array, v: jax.Array):
            grouped = by_kv_head(q, K)
            own = attend(grouped, k.transpose(2, 0, 3, 1), v.transpose(2, 0, 1, 3), causal)
            out = result(merge(attend_chunks(grouped, read, num_chunks), own))
            return by_position(out, T).astype(q.dtype), (k, v)

        return attention

    x = llama.embed(params, rows.tokens)
    rotation = llama.rope(positions, config)
    new = []
    for l in range(config.num_layers):
        attention = attend_to(pool.k[l], pool.v[l])
        x, kv = llama.block(llama.layer(params, l), config, x, rotation, attention)
        new.append(kv)
    return llama.final_norm(params, config, x), new


def extend(params, config: LlamaConfig, pool: Pool, rows: ExtendRows) -> tuple[Pool, jax.Array]:
    """Reads the rows and writes their pages. It consumes the pool.

    Returns:
      The pool, and the hidden state [R, D] at each row's last token.
    """
    hidden, new = read_to_last(params, config, pool, rows)
    return commit(pool, new, rows.pages), hidden


@functools.partial(jax.jit, static_argnames="config")
def read_to_last(params, config: LlamaConfig, pool: Pool, rows: ExtendRows):
    """`read_rows` with the hidden state [R, D] at each row's last token only."""
    hidden, new = read_rows(params, config, pool, rows)
    last = jnp.maximum(rows.lengths - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], new
