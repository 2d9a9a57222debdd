"""Chunked prefill: reads new tokens after a cached prefix.

Prompts, observations and the states that a reward model scores are all read by this program.

R rows of at most T tokens, G sequences that they follow; packed, B bins of N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention.readers import prefill_attention
from agentrm_jax.engine.cache.pages import KeyValues
from agentrm_jax.engine.programs.model import LoadedModel
from agentrm_jax.engine.rows import PrefillRows
from agentrm_jax.model import llama
from agentrm_jax.model.attention import device_of
from agentrm_jax.runtime.fusion import materialize


class Packing(NamedTuple):
    """The positions of the rows' tokens in the bins.

    Attributes:
      rows: [B, N] int32, the row of each token among those of its bin.
      offsets: [B, N] int32, the index of each token in its row.
      last: [B, R / B] int32, the index of each row's last token in its bin.
      unpack: [B, N, ...] to [R, T, ...], with arbitrary values after a row's last token.
      pack: [R, T, ...] to [B, N, ...].
    """

    rows: jax.Array
    offsets: jax.Array
    last: jax.Array
    unpack: Callable[[jax.Array], jax.Array]
    pack: Callable[[jax.Array], jax.Array]


def packing(rows: PrefillRows, page_size: int) -> Packing:
    """Returns the positions of the rows' tokens in the bins."""
    (B, N), R, T = rows.tokens.shape, rows.lengths.shape[0], rows.most_tokens(page_size)
    lengths = rows.lengths.reshape(B, -1)
    ends = jnp.cumsum(lengths, axis=1)
    begin = ends - lengths
    index = jnp.arange(N)
    row = jnp.sum(index[:, None] >= ends[:, None, :-1], axis=2)
    offset = index - jnp.take_along_axis(begin, row, axis=1)

    def gather(x: jax.Array, at: jax.Array) -> jax.Array:
        at = at.reshape(B, -1, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1, mode="clip")

    def unpack(x: jax.Array) -> jax.Array:
        x = gather(x, begin[..., None] + jnp.arange(T))
        return x.reshape(R, T, *x.shape[2:])

    def pack(x: jax.Array) -> jax.Array:
        return gather(x.reshape(B, -1, *x.shape[2:]), row * T + offset)

    last = jnp.maximum(ends - 1, 0)
    if B == R:
        return Packing(row, offset, last, lambda x: x, lambda x: x)
    return Packing(row, offset, last, unpack, pack)


def forward_rows(model: LoadedModel, rows: PrefillRows) -> tuple[jax.Array, KeyValues]:
    """Runs the model over the rows; packed rows are unpacked for attention only.

    The last layer computes keys and values of all tokens, and everything else of each row's last
    token only.

    Returns:
      The hidden state [R, D] of that token after the final norm, and each layer's new (k, v)
      [K, R, T, H].
    """
    params, config, pool = model.params, model.config, model.pool
    packed, T = packing(rows, pool.page_size), rows.most_tokens(pool.page_size)
    B, R, G = rows.tokens.shape[0], rows.lengths.shape[0], rows.starts.shape[0]
    every = jnp.broadcast_to(jnp.arange(T), (R, T))
    last = jnp.maximum(rows.lengths - 1, 0)[:, None]
    attend_every, attend_last = (prefill_attention(config, pool, rows, q) for q in (every, last))

    def attention(l: int) -> llama.Attend:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array):
            k, v = (jax.tree.map(packed.unpack, pool.stored(x)) for x in (k, v))
            if l == config.num_layers - 1:
                own = q.reshape(R, 1, *q.shape[2:])
                out = attend_last(l, own, k, v).reshape(q.shape)
            else:
                out = packed.pack(attend_every(l, packed.unpack(q), k, v))
            return out, jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (k, v))

        return attend

    x = llama.embed(params, rows.tokens)
    starts = jnp.repeat(rows.starts, R // G).reshape(B, -1)
    positions = jnp.take_along_axis(starts, packed.rows, axis=1) + packed.offsets
    rotation = llama.rope(positions, config)
    if device_of(pool.backend.mesh).platform == "cpu":  # or every layer recomputes the sines
        rotation = materialize(rotation, rotation[1][0, 0, 0])
    new = []
    for l, layer in enumerate(params["layers"]):
        only = packed.last if l == config.num_layers - 1 else None
        x, kv = llama.block(layer, config, x, rotation, attention(l), only)
        new.append(kv)
    return llama.final_norm(params, config, x).reshape(R, -1), new


@jax.jit
def prefill(model: LoadedModel, rows: PrefillRows) -> tuple[KeyValues, jax.Array | None]:
    """Reads the rows. `cache.pages.commit` writes the new keys and values into their pages.

    Returns:
      Each layer's new (k, v) [K, R, T, H], and the readout [R] at each row's last token, or None
      for a model without a readout.
    """
    last, new = forward_rows(model, rows)
    return new, None if model.readout is None else model.readout(model.head, last)
