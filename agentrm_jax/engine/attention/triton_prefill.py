"""Prefill attention on NVIDIA GPUs as one kernel: pages by their numbers, then the new tokens.

A program takes some queries of a row that share a KV head. It walks over the shared prefixes of its
sequence, the sequence's own pages and the new tokens of the row with one running softmax in
float32, and writes the finished output: no partial result is ever in memory. Blocks of queries
after the last token of their row read nothing.

Shapes: K KV heads, R rows, G sequences, M queries of a row that share the keys, T new tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention.parts import (
    MASKED,
    OWN_PAGES,
    AttendTo,
    by_kv_head,
    by_position,
    declared_bytes,
)
from agentrm_jax.engine.attention.triton import Table, check_pool, make_table, queries_of_program
from agentrm_jax.engine.cache.pages import Pool
from agentrm_jax.engine.rows import PrefillRows
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import Stored
from agentrm_jax.model.interval_attention import dot
from agentrm_jax.runtime.sharding import logical_to_spec


def attention(config: LlamaConfig, pool: Pool, rows: PrefillRows, queries: jax.Array) -> AttendTo:
    """Returns attention of prefill.

    Args:
      config: The shape of the model.
      pool: The pages.
      rows: The rows to read.
      queries: [R, Q] int32, the index of each query's token in its row.
    """
    K, Q = config.num_kv_heads, queries.shape[1]
    context = rows.context
    shared = make_table(context.shared, jnp.asarray(context.shared_ids))
    own, prefixes = make_table(context.own), jnp.asarray(context.prefix_ids)
    indices = jnp.repeat(queries.astype(jnp.int32), config.num_heads // K, axis=1)  # [R, M]
    attend = functools.partial(_attend, page_size=pool.page_size, interpret=pool.backend.interpret)
    mesh = pool.backend.mesh
    if mesh is not None:
        divided = rows.starts.shape[0] % mesh.shape["data"] == 0
        by_row = logical_to_spec(("rows" if divided else None,))
        by_head = logical_to_spec(("kv_heads", "rows" if divided else None))
        heads, everywhere = logical_to_spec(("kv_heads",)), logical_to_spec(())
        attend = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(
                Table(everywhere, everywhere, everywhere, everywhere),  # pyright: ignore
                Table(by_row, by_row, by_row, None),  # pyright: ignore
                (by_row, by_row, by_row), by_head, (heads, heads), (by_head, by_head),
            ),
            out_specs=by_head,
            check_vma=False,
        )  # fmt: skip

    def attend_to(l: int, q: jax.Array, k: Stored, v: Stored) -> jax.Array:
        new = jax.tree.map(lambda x: x.transpose(2, 0, 1, 3), (k, v))
        with jax.named_scope(OWN_PAGES):
            out = attend(
                shared, own, (prefixes, jnp.asarray(rows.lengths), indices), by_kv_head(q, K),
                (pool.k[l], pool.v[l]), new,
            )  # fmt: skip
        return by_position(out, Q)

    return attend_to


def _attend(
    shared: Table, own: Table, of_rows, q, pages, new, *, page_size: int, interpret: bool
) -> jax.Array:
    """Attention on one device.

    Args:
      of_rows: The shared prefix of each sequence [G], the length of each row [R], and the index of
        each query's token in its row [R, M].
      q: [K, R, M, H].
      pages: Keys and values [K, pages, page_size, H] of a layer.
      new: Keys and values [K, R, T, H] of the new tokens.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    (K, R, M, H), T = q.shape, new[0].shape[2]
    prefixes, lengths, indices = of_rows
    check_pool(pages[0])
    G, S, C = prefixes.shape[0], shared.pages.shape[1], own.pages.shape[1]
    size = queries_of_program(M)
    missing = -M % size
    blocks = (M + missing) // size
    tokens = 64 if q.dtype.itemsize * H <= 256 else 32
    q = jnp.pad(q, ((0, 0), (0, 0), (0, missing), (0, 0)))
    indices = jnp.pad(indices, ((0, 0), (0, missing)), mode="edge")
    siblings = R // G
    assert shared.labels is not None
    numbers = [
        shared.pages, shared.fills, shared.counts[:, None], shared.labels[None],
        own.pages, own.fills, own.counts[:, None], prefixes[:, None], lengths[:, None],
    ]  # fmt: skip

    def whole(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, width), lambda r, b, h: (0, 0))

    def of_sequence(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, width), lambda r, b, h: (jax.lax.div(r, siblings), 0))

    pool = pl.BlockSpec((None, pages[0].shape[1] * page_size, H), lambda r, b, h: (h, 0, 0))
    row = pl.BlockSpec((None, None, T, H), lambda r, b, h: (h, r, 0, 0))
    block = pl.BlockSpec((None, None, size, H), lambda r, b, h: (h, r, b, 0))
    moved = [q, q, indices, *numbers, *new]
    fixed = sum(x.size * x.dtype.itemsize for x in moved)
    # Programs of one sequence run side by side and find its pages in the cache.
    paged = 2 * K * G * C * page_size * H * q.dtype.itemsize
    with declared_bytes(fixed, paged):
        out = pl.pallas_call(
            functools.partial(_kernel, page_size=page_size, tokens=tokens),
            grid=(R, blocks, K),
            in_specs=[
                *map(whole, (S, S, 1, S)), *map(of_sequence, (C, C, 1, 1)),
                pl.BlockSpec((None, 1), lambda r, b, h: (r, 0)),
                pl.BlockSpec((None, size), lambda r, b, h: (r, b)),
                block, pool, pool, row, row,
            ],
            out_specs=block,
            out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
            compiler_params=plgpu.CompilerParams(num_warps=8 if size > 64 else 4, num_stages=2),
            interpret=interpret,
            name="prefill_attention",
        )(*numbers, indices, q, *(x.reshape(K, -1, H) for x in pages), *new)  # fmt: skip
    return out[:, :, :M]


def _kernel(*refs, page_size: int, tokens: int):
    """The tables as in `_attend`, of one row; queries [Q, H] and their indices [Q]; pages [.., H];
    new keys and values [T, H]; the output [Q, H]."""
    from jax.experimental.pallas import triton as plgpu

    *tables, prefix, length, indices, q, k, v, new_k, new_v, out = refs
    shared_pages, shared_fills, shared_count, labels, own_pages, own_fills, own_count = tables
    queries, at, H = q[...], indices[...], q.shape[1]
    width = jnp.arange(H)[None, :]
    used = length[0]
    # 0 for blocks without a token: their loops end at once.
    live = (jnp.min(at) < used).astype(jnp.int32)

    def add(part, keys, values, seen):
        weighted, largest, total = part
        scores = jnp.where(seen, dot(queries, keys, (1, 1)) * H**-0.5, MASKED)
        new = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - new[:, None]), 0.0)
        keep = jnp.exp(largest - new)
        added = dot(weights.astype(values.dtype), values, (1, 0))
        return weighted * keep[:, None] + added, new, total * keep + jnp.sum(weights, axis=1)

    def over_pages(part, pages, fills, count, labels=None):
        def step(i, part):
            slot = i * tokens + jnp.arange(tokens)
            column = jnp.minimum(slot // page_size, pages.shape[0] - 1)
            offset = slot % page_size
            seen = (slot < pages.shape[0] * page_size) & (offset < plgpu.load(fills.at[column]))
            if labels is not None:
                seen &= plgpu.load(labels.at[column]) == prefix[0]
            token = plgpu.load(pages.at[column]) * page_size + offset
            keys, values = (plgpu.load(x.at[token[:, None], width]) for x in (k, v))
            return add(part, keys, values, jnp.broadcast_to(seen[None, :], (q.shape[0], tokens)))

        steps = (count[0] * page_size + tokens - 1) // tokens
        return jax.lax.fori_loop(0, live * steps, step, part)

    def new_tokens(i, part):
        offset = i * tokens + jnp.arange(tokens)
        seen = (at[:, None] >= offset[None, :]) & (offset < used)[None, :]
        offset = jnp.minimum(offset, new_k.shape[0] - 1)[:, None]
        keys, values = (plgpu.load(x.at[offset, width]) for x in (new_k, new_v))
        return add(part, keys, values, seen)

    part = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[0], MASKED, jnp.float32),
        jnp.zeros(q.shape[0], jnp.float32),
    )
    part = over_pages(part, shared_pages, shared_fills, shared_count, labels)
    part = over_pages(part, own_pages, own_fills, own_count)
    last = jnp.minimum(jnp.max(at) + 1, used)
    weighted, _, total = jax.lax.fori_loop(
        0, live * ((last + tokens - 1) // tokens), new_tokens, part
    )
    out[...] = (weighted / jnp.maximum(total, 1e-30)[:, None]).astype(out.dtype)
