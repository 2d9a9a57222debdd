"""Branching decoding: the continuations of many sequences, some tokens at a time, on the device.

The branches of a sequence share its pages, which are read once for all of them. Sequences stand in
groups by their number of branches, so that one batch holds states that want many continuations and
states that want one (see `DecodeRows`). A row's new keys and values are kept in a buffer during a
call and are written to pages after it (`cache.pages.commit`): the next call reads them from there,
and nothing else remains of the call.

R rows, G sequences of a group with n branches each, K KV heads, N heads of H numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention.parts import (
    OWN_PAGES,
    SHARED_PREFIXES,
    SUFFIX,
    TAILS,
    Part,
    Reader,
    by_kv_head,
    by_position,
    merge,
    output,
)
from agentrm_jax.engine.attention.readers import decode_own, decode_shared, decode_suffix
from agentrm_jax.engine.cache.pages import KeyValues
from agentrm_jax.engine.programs.model import LoadedModel
from agentrm_jax.engine.programs.sampling import Filter, sample
from agentrm_jax.engine.programs.slots import slot_map
from agentrm_jax.engine.rows import Decoded, DecodeRows
from agentrm_jax.model import llama
from agentrm_jax.model.eight_bits import Stored


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DecodePlan:
    """The static sizes of a decoding program: each plan is compiled once.

    Attributes:
      branches: For each group, the branches of a sequence.
      length: Most tokens that a call decodes for a row.
      tile: Pages of a tile; divides the width of the page tables. Tails are read in tiles of as
        many pages, or of all if they have fewer.
      num_tiles: For each group, the tiles that its sequences have together: a bucket
        (`attention.tiles.bucket`).
      filter: The filter of the sampling.
    """

    branches: tuple[int, ...]
    length: int
    tile: int
    num_tiles: tuple[int, ...]
    filter: Filter


def cached_attention(model: LoadedModel, rows: DecodeRows, plan: DecodePlan) -> Reader:
    """Returns attention of queries [K, R, N / K, H] to all pages of their rows.

    These are shared prefixes, sequences, and what the rows have decoded in earlier calls.
    """
    config, pool = model.config, model.pool
    R, K, H = rows.last_tokens.shape[0], config.num_kv_heads, config.head_dim
    shared_by = config.num_heads // K
    groups = list(zip(plan.branches, rows.contexts, strict=True))
    with jax.named_scope(OWN_PAGES):
        own_readers = [
            decode_own(pool, context.own, plan.tile, num_tiles)
            for context, num_tiles in zip(rows.contexts, plan.num_tiles, strict=True)
        ]
    slots = slot_map(rows, plan.branches)
    # The rows of all groups read the shared prefixes together.
    prefix_ids = slots.to_rows([jnp.repeat(c.prefix_ids, n)[None] for n, c in groups])[0]
    all_rows = dataclasses.replace(rows.contexts[0], prefix_ids=prefix_ids)
    with jax.named_scope(SHARED_PREFIXES):
        shared_reader = decode_shared(pool, all_rows, jnp.repeat(jnp.arange(R), shared_by))
    tail_reader = None
    if rows.tails is not None:
        width = rows.tails.pages.shape[1]
        tile = min(plan.tile, width)
        with jax.named_scope(TAILS):
            tail_reader = decode_own(pool, rows.tails, tile, R * (width // tile))

    def by_branch(x: jax.Array) -> jax.Array:
        """[K, G, n * M, ...] to [K, G * n, M, ...]."""
        return x.reshape(K, -1, shared_by, *x.shape[3:])

    def attention(l: int, q: jax.Array) -> Part:
        with jax.named_scope(OWN_PAGES):
            own = [
                read(l, queries.reshape(K, context.prefix_ids.shape[0], n * shared_by, H))
                for (n, context), read, queries in zip(
                    groups, own_readers, slots.to_slots(q), strict=True
                )
            ]
        part = jax.tree.map(lambda *x: slots.to_rows([by_branch(group) for group in x]), *own)
        with jax.named_scope(SHARED_PREFIXES):
            shared = shared_reader(l, q.reshape(K, 1, -1, H))
        part = merge(jax.tree.map(by_branch, shared), part)
        if tail_reader is None:
            return part
        with jax.named_scope(TAILS):
            tails = tail_reader(l, q)
        return merge(part, tails)

    return attention


def _padded_to_eight(x: jax.Array) -> jax.Array:
    """Pads rows to a multiple of eight.

    The last rows of an odd number may be multiplied by another routine, whose rounding differs, and
    a reply would depend on its row.
    """
    return jnp.pad(x, ((0, -x.shape[0] % 8),) + ((0, 0),) * (x.ndim - 1))


def _next_logits(
    model: LoadedModel, rows: DecodeRows, plan: DecodePlan
) -> Callable[[jax.Array, jax.Array, KeyValues], tuple[jax.Array, KeyValues]]:
    """Returns (step, last tokens [R], buffers) to logits [R, V] and the buffers with new keys."""
    params, config = model.params, model.config
    R, K = rows.last_tokens.shape[0], config.num_kv_heads
    attend_cached = cached_attention(model, rows, plan)
    # Once for all tokens: in the loop every layer would recompute the sines.
    positions = _padded_to_eight(rows.positions)[:, None] + jnp.arange(plan.length)
    sin, cos = llama.rope(positions, config)

    def at_step(x: jax.Array, j: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, j, 1, axis=1)

    def put(buffer: Stored, new: jax.Array, j: jax.Array) -> Stored:
        def write(x: jax.Array, token: jax.Array) -> jax.Array:
            start = (0, 0, j, 0)[: x.ndim]
            return jax.lax.dynamic_update_slice(x, jnp.moveaxis(token, 2, 0), start)

        return jax.tree.map(write, buffer, model.pool.stored(new))

    def attention(l: int, buffer: tuple[Stored, Stored], j: jax.Array) -> llama.Attend:
        def attend_all(q: jax.Array, k: jax.Array, v: jax.Array):
            q, k, v = q[:R], k[:R], v[:R]
            own_k, own_v = put(buffer[0], k, j), put(buffer[1], v, j)
            q = by_kv_head(q, K)
            with jax.named_scope(SUFFIX):
                own = decode_suffix(q, own_k, own_v, j, model.pool.backend)
            out = output(merge(attend_cached(l, q), own))
            return _padded_to_eight(by_position(out, 1).astype(q.dtype)), (own_k, own_v)

        return attend_all

    def next_logits(j: jax.Array, last: jax.Array, buffers: KeyValues):
        x = llama.embed(params, _padded_to_eight(last)[:, None])
        rotation = at_step(sin, j), at_step(cos, j)
        new = []
        for l in range(config.num_layers):
            attend_all = attention(l, buffers[l], j)
            x, kv = llama.block(params["layers"][l], config, x, rotation, attend_all)
            new.append(kv)
        return llama.logits(params, config, llama.final_norm(params, config, x)[:, 0])[:R], new

    return next_logits


def decode_tokens(
    model: LoadedModel, rows: DecodeRows, plan: DecodePlan
) -> tuple[KeyValues, Decoded]:
    """Decodes at most `plan.length` more tokens for every row.

    The token of branch b at offset t depends only on the sequence, its key, b and t.

    Returns:
      Each layer's (k, v) [K, R, T, H] of the tokens read, for `cache.pages.commit`, and the decoded
      tokens.
    """
    config = model.config
    R, K, H = rows.last_tokens.shape[0], config.num_kv_heads, config.head_dim
    next_logits = _next_logits(model, rows, plan)
    keys = jax.vmap(lambda data, b: jax.random.fold_in(jax.random.wrap_key_data(data), b))(
        rows.keys, rows.branches
    )

    def step(state):
        j, last, done, buffers, decoded = state
        logits, buffers = next_logits(j, last, buffers)
        t = rows.offsets + j
        token, log_prob = sample(
            jax.vmap(jax.random.fold_in)(keys, t), logits, rows.temperature, plan.filter
        )
        ending = ~done & rows.ends[token]
        decoded = Decoded(
            tokens=decoded.tokens.at[:, j].set(jnp.where(done, 0, token)),
            log_probs=decoded.log_probs.at[:, j].set(jnp.where(done, 0.0, log_prob)),
            lengths=decoded.lengths + ~done,
            ended=decoded.ended | ending,
        )
        last = jnp.where(done, last, token)
        return j + 1, last, done | ending | (t + 1 >= rows.limits), buffers, decoded

    k = v = model.pool.empty(K, R, plan.length, H)
    state = (
        jnp.int32(0),
        rows.last_tokens,
        ~rows.active,
        [(k, v)] * config.num_layers,
        Decoded(
            tokens=jnp.zeros((R, plan.length), jnp.int32),
            log_probs=jnp.zeros((R, plan.length), jnp.float32),
            lengths=jnp.zeros(R, jnp.int32),
            ended=jnp.zeros(R, bool),
        ),
    )
    with jax.named_scope("tokens"):
        state = jax.lax.while_loop(lambda s: (s[0] < plan.length) & ~jnp.all(s[2]), step, state)
    return state[3], state[4]


decode = jax.jit(decode_tokens, static_argnames="plan")
