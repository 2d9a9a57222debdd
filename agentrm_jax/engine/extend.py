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
from agentrm_jax.engine.pages import (
    Context,
    PageTable,
    Pool,
    chunk_mask,
    instruction_mask,
    read_chunk,
)
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig

CHUNK = 8
"""Pages of prefix that attention reads at a time."""


@flax.struct.dataclass
class ExtendRows:
    """New tokens for R rows; unused rows have length 0. G divides R: the rows r of a conversation
    g = r // (R / G) follow the same context, side by side.

    Attributes:
      tokens: [R, T] int32.
      lengths: [R] int32, how many of the T are tokens.
      starts: [G] int32, position of the first one: what the context holds.
      context: The pages of the G conversations.
      pages: [R, T / page_size] int32, where to write; a number past the pool is not written.
    """

    tokens: jax.Array
    lengths: jax.Array
    starts: jax.Array
    context: Context
    pages: jax.Array


def read_rows(params, config: LlamaConfig, pool: Pool, rows: ExtendRows):
    """Runs the model over the rows.

    Returns:
      Hidden states [R, T, D] after the final norm, and each layer's new (k, v) [K, R, T, H].
    """
    (R, T), K, G = rows.tokens.shape, config.num_kv_heads, rows.starts.shape[0]
    shared_by = config.num_heads // K
    context, page_size = rows.context, pool.page_size
    positions = jnp.repeat(rows.starts, R // G)[:, None] + jnp.arange(T)
    offset = jnp.arange(T)
    causal = (offset[:, None] >= offset) & (offset < rows.lengths[:, None, None])  # [R, T, T]
    causal = jnp.repeat(causal, shared_by, axis=1)  # [R, T * N / K, T]
    reader = jnp.repeat(jnp.arange(G), (R // G) * T * shared_by)  # conversation of each query

    def attend_to(pool_k: jax.Array, pool_v: jax.Array):
        def read(table: PageTable, c: jax.Array):
            k, v = read_chunk(pool_k, table, c, CHUNK), read_chunk(pool_v, table, c, CHUNK)
            return k.swapaxes(2, 3), v

        def read_instruction(c: jax.Array):
            mask = instruction_mask(context, c, CHUNK, page_size)[reader]
            return *read(context.instructions, c), mask

        def read_own(c: jax.Array):
            return *read(context.own, c), chunk_mask(context.own, c, CHUNK, page_size)[:, None]

        def attention(q: jax.Array, k: jax.Array, v: jax.Array):
            grouped = by_kv_head(q, K)  # [K, R, T * N / K, H]
            k, v = k.transpose(2, 0, 1, 3), v.transpose(2, 0, 1, 3)
            parts = [attend(grouped, k.swapaxes(2, 3), v, causal)]
            for rows_together, read_part, table in (
                (1, read_instruction, context.instructions),
                (G, read_own, context.own),
            ):
                queries = grouped.reshape(K, rows_together, -1, q.shape[-1])
                part = attend_chunks(queries, read_part, table.num_chunks(CHUNK))
                parts.append(jax.tree.map(lambda x, y: x.reshape(y.shape), part, parts[0]))
            own, instruction, before = parts
            out = result(merge(merge(instruction, before), own))
            return by_position(out, T).astype(q.dtype), (k, v)

        return attention

    x = llama.embed(params, rows.tokens)
    rotation = llama.rope(positions, config)
    new = []
    for l in range(config.num_layers):
        attention = attend_to(pool.k[l], pool.v[l])
        x, kv = llama.block(params["layers"][l], config, x, rotation, attention)
        new.append(kv)
    return llama.final_norm(params, config, x), new


@functools.partial(jax.jit, static_argnames=("config", "readout"))
def extend(params, config: LlamaConfig, pool: Pool, rows: ExtendRows, head=None, readout=None):
    """Reads the rows. `commit` writes what it returns into their pages.

    Args:
      readout: (head, hidden [R, D] at each row's last token) to anything, or None.

    Returns:
      Each layer's new (k, v) [K, R, T, H], and the readout.
    """
    hidden, new = read_rows(params, config, pool, rows)
    if readout is None:
        return new, None
    last = jnp.maximum(rows.lengths - 1, 0)
    return new, readout(head, jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
