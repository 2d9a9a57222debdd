"""Chunked prefill: reads new tokens behind a cached prefix and writes their pages.

The one function behind prompts, observations and the reward model's scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention import pallas as paged_attention
from agentrm_jax.engine.attention.parts import (
    Part,
    Reader,
    attend,
    attend_chunks,
    by_kv_head,
    by_position,
    merge,
    result,
)
from agentrm_jax.engine.cache.pages import (
    Array,
    Context,
    PageTable,
    Pool,
    chunk_mask,
    instruction_mask,
    read_chunk,
)
from agentrm_jax.model import llama
from agentrm_jax.model.attention import device_of, masked_attention
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.fusion import materialize

CHUNK = 8
"""Pages of prefix that attention reads at a time."""


@flax.struct.dataclass
class ExtendRows:
    """New tokens for R rows; unused rows have length 0. G divides R: the rows r of a conversation
    g = r // (R / G) follow the same context, side by side.

    Attributes:
      tokens: [R, T] int32; or packed, [B, N]: those of R / B rows side by side, then padding.
      lengths: [R] int32, how many tokens each row has; at most T, and N together.
      starts: [G] int32, position of the first one: what the context holds.
      context: The pages of the G conversations.
      pages: [R, T / page_size] int32, where to write; a number past the pool is not written. Packed
        rows tell by them what T is.
    """

    tokens: Array
    lengths: Array
    starts: Array
    context: Context
    pages: Array

    def most_tokens(self, page_size: int) -> int:
        """T, most tokens of a row."""
        if self.tokens.shape[0] == self.lengths.shape[0]:
            return self.tokens.shape[1]
        return self.pages.shape[1] * page_size


class Packing(NamedTuple):
    """Where the tokens of R rows stand in B blocks.

    Attributes:
      rows: [B, N] int32, the row of each token among those of its block.
      offsets: [B, N] int32, which of the row's tokens it is.
      last: [B, R / B] int32, where each row's last token stands.
      spread: [B, N, ...] to [R, T, ...], where anything is behind a row's last token.
      joined: [R, T, ...] to [B, N, ...].
    """

    rows: jax.Array
    offsets: jax.Array
    last: jax.Array
    spread: Callable[[jax.Array], jax.Array]
    joined: Callable[[jax.Array], jax.Array]


def packing(rows: ExtendRows, page_size: int) -> Packing:
    """Where the rows' tokens stand."""
    (B, N), R, T = rows.tokens.shape, rows.lengths.shape[0], rows.most_tokens(page_size)
    lengths = rows.lengths.reshape(B, -1)
    ends = jnp.cumsum(lengths, axis=1)
    begin = ends - lengths
    number = jnp.arange(N)
    row = jnp.sum(number[:, None] >= ends[:, None, :-1], axis=2)
    offset = number - jnp.take_along_axis(begin, row, axis=1)

    def taken(x: jax.Array, at: jax.Array) -> jax.Array:
        at = at.reshape(B, -1, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1, mode="clip")

    def spread(x: jax.Array) -> jax.Array:
        x = taken(x, begin[..., None] + jnp.arange(T))
        return x.reshape(R, T, *x.shape[2:])

    def joined(x: jax.Array) -> jax.Array:
        return taken(x.reshape(B, -1, *x.shape[2:]), row * T + offset)

    last = jnp.maximum(ends - 1, 0)
    if B == R:
        return Packing(row, offset, last, lambda x: x, lambda x: x)
    return Packing(row, offset, last, spread, joined)


def read_rows(params, config: LlamaConfig, pool: Pool, rows: ExtendRows):
    """Runs the model over the rows. Packed rows are apart for attention alone. The last layer
    computes keys and values, and all else of each row's last token alone.

    Returns:
      That token's hidden state [R, D] after the final norm, and each layer's new (k, v)
      [K, R, T, H].
    """
    at, T = packing(rows, pool.page_size), rows.most_tokens(pool.page_size)
    B, R, G = rows.tokens.shape[0], rows.lengths.shape[0], rows.starts.shape[0]
    kind = whole_attention if pool.backend.name == "cudnn" else parted_attention
    every = jnp.broadcast_to(jnp.arange(T), (R, T))
    last = jnp.maximum(rows.lengths - 1, 0)[:, None]
    attend_every, attend_last = (kind(config, pool, rows, to) for to in (every, last))

    def attention(l: int) -> llama.Attend:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array):
            k, v = at.spread(k), at.spread(v)
            if l == config.num_layers - 1:
                own = q.reshape(R, 1, *q.shape[2:])
                out = attend_last(l, own, k, v).reshape(q.shape)
            else:
                out = at.joined(attend_every(l, at.spread(q), k, v))
            return out, (k.transpose(2, 0, 1, 3), v.transpose(2, 0, 1, 3))

        return attend

    x = llama.embed(params, rows.tokens)
    starts = jnp.repeat(rows.starts, R // G).reshape(B, -1)
    positions = jnp.take_along_axis(starts, at.rows, axis=1) + at.offsets
    rotation = llama.rope(positions, config)
    if device_of(pool.backend.mesh).platform == "cpu":  # each layer would recompute sines
        rotation = materialize(rotation, rotation[1][0, 0, 0])
    new = []
    for l, layer in enumerate(params["layers"]):
        only = at.last if l == config.num_layers - 1 else None
        x, kv = llama.block(layer, config, x, rotation, attention(l), only)
        new.append(kv)
    return llama.final_norm(params, config, x).reshape(R, -1), new


AttendTo = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]
"""(layer, q [R, Q, N, H], new k and v [R, T, K, H]) to what attention gives [R, Q, N, H]."""


def parted_attention(config: LlamaConfig, pool: Pool, rows: ExtendRows, at: jax.Array) -> AttendTo:
    """Attention to instructions, conversations and new tokens, each by itself, and then merged.

    Args:
      at: [R, Q] int32, which of its tokens a row's queries are of.
    """
    (R, Q), K, G = at.shape, config.num_kv_heads, rows.starts.shape[0]
    shared_by = config.num_heads // K
    context, page_size = rows.context, pool.page_size
    offset = jnp.arange(rows.most_tokens(page_size))
    causal = (at[..., None] >= offset) & (offset < rows.lengths[:, None, None])  # [R, Q, T]
    causal = jnp.repeat(causal, shared_by, axis=1)  # [R, Q * N / K, T]
    reader = jnp.repeat(jnp.arange(G), (R // G) * Q * shared_by)  # conversation of each query
    if pool.backend.name == "pallas":
        instructions = paged_attention.read_instructions(pool, context, reader)
        own = paged_attention.read_own(pool, context.own)
    else:
        instructions = _read_chunks(
            pool,
            context.instructions,
            lambda c: instruction_mask(context, c, CHUNK, page_size)[reader],
        )
        own = _read_chunks(
            pool, context.own, lambda c: chunk_mask(context.own, c, CHUNK, page_size)[:, None]
        )

    def attend_to(l: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        grouped = by_kv_head(q, K)  # [K, R, Q * N / K, H]
        k, v = k.transpose(2, 0, 1, 3), v.transpose(2, 0, 1, 3)
        new = attend(grouped, k.swapaxes(2, 3), v, causal)
        before = []
        for rows_together, read in ((1, instructions), (G, own)):
            part = read(l, grouped.reshape(K, rows_together, -1, q.shape[-1]))
            before.append(jax.tree.map(lambda x, y: x.reshape(y.shape), part, new))
        out = result(merge(merge(*before), new))
        return by_position(out, Q).astype(q.dtype)

    return attend_to


def _read_chunks(pool: Pool, table: PageTable, mask_of: Callable[[jax.Array], jax.Array]) -> Reader:
    """Attention to the pages of a table, chunk by chunk."""

    def attention(l: int, q: jax.Array) -> Part:
        def read(c: jax.Array):
            k, v = (read_chunk(layer[l], table, c, CHUNK) for layer in (pool.k, pool.v))
            return k.swapaxes(2, 3), v, mask_of(c)

        return attend_chunks(q, read, table.num_chunks(CHUNK))

    return attention


_WIDTHS = (8, 4, 2, 1)
"""Into how many parts a page table is divided; what is read is the smallest one that holds all."""


def whole_attention(config: LlamaConfig, pool: Pool, rows: ExtendRows, at: jax.Array) -> AttendTo:
    """The same with all keys of a conversation side by side, for kernels that want them so."""
    R, G, page_size = rows.lengths.shape[0], rows.starts.shape[0], pool.page_size
    T = rows.most_tokens(page_size)
    row, offset = jnp.divmod(jnp.arange(R // G * T), T)  # new tokens behind a conversation
    of_row = jnp.repeat(jnp.arange(R // G), at.shape[1])[:, None]
    at = at.reshape(G, -1, 1)
    there = offset < jnp.repeat(rows.lengths.reshape(G, -1), T, axis=1)[:, None]
    # [G, R / G * Q, R / G * T]; each sees itself, so that none sees nothing
    new = (of_row == row) & ((at == offset) | ((at > offset) & there))
    table = rows.context.joined()
    widths = [-(-table.pages.shape[1] // n) for n in _WIDTHS]
    used = jnp.max(jnp.sum(table.fills > 0, axis=1))
    narrowest = jnp.searchsorted(jnp.asarray(widths), used)

    def behind(width: int, l: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attention to so many pages and the new tokens; q, k, v with axes [G, R / G * Q or T]."""

        def keys(layer: jax.Array, own: jax.Array) -> jax.Array:
            before = read_chunk(layer, table, 0, width).transpose(1, 2, 0, 3)
            return jnp.concatenate([before, own], axis=1)

        before = chunk_mask(table, 0, width, page_size)[:, None]
        before = jnp.broadcast_to(before, (*new.shape[:2], before.shape[2]))
        mask = jnp.concatenate([before, new], axis=2)
        return masked_attention(q, keys(pool.k[l], k), keys(pool.v[l], v), mask, pool.backend)

    def attend_to(l: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        branches = [functools.partial(behind, width, l) for width in widths]
        grouped = (x.reshape(G, -1, *x.shape[2:]) for x in (q, k, v))
        return jax.lax.switch(narrowest, branches, *grouped).reshape(q.shape)

    return attend_to


@functools.partial(jax.jit, static_argnames=("config", "readout"))
def extend(params, config: LlamaConfig, pool: Pool, rows: ExtendRows, head=None, readout=None):
    """Reads the rows. `commit` writes what it returns into their pages.

    Args:
      readout: (head, hidden [R, D] at each row's last token) to anything, or None.

    Returns:
      Each layer's new (k, v) [K, R, T, H], and the readout.
    """
    last, new = read_rows(params, config, pool, rows)
    return new, None if readout is None else readout(head, last)
