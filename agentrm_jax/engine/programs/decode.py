"""Branching decoding: continuations of conversations, some tokens at a time, on the device.

Conversations stand in lanes: each lane has places for G conversations with at most n branches each,
so that states that want many continuations and states that want one are decoded in one batch. The
branches of a conversation share its pages, which are read once for all of them. A place has n
slots, one for the queries of each branch; rows, what all else is computed for, are fewer than the
slots of several lanes and stand where there is something to decode. A row's own tokens are kept in
a block while they are decoded and become pages afterwards (`pages.commit`): a row that goes on is
decoded from its pages, and nothing else remains of the call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.attention import pallas as paged_attention
from agentrm_jax.engine.attention import tiles as tile_lists
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
    instruction_mask,
    read_chunk,
)
from agentrm_jax.engine.programs.prefill import CHUNK
from agentrm_jax.engine.programs.sampling import Filter, sample
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig


@flax.struct.dataclass
class DecodeRows:
    """R rows to continue.

    Attributes:
      contexts: Of each lane, the conversations without what their rows have decoded; all with the
        same instructions, those of all lanes.
      slots: [D, R / D] int32, the slot of each row among the S / D of its device, lane by lane and
        place by place; S / D for padding. None where rows are as many as slots and stand in their
        order.
      tails: Pages of what each row has decoded before, or None where this cannot be.
      last_tokens: [R] int32, the token before the next: what decoding reads first.
      positions: [R] int32, its position.
      offsets: [R] int32, how many tokens of the reply are there already.
      keys: [R, 2] uint32, random key data of each row's conversation.
      branches: [R] int32, which continuation of it the row is.
      temperature: [R] float32; 0 is greedy.
      limits: [R] int32, most tokens of the reply.
      active: [R] bool; the others are padding.
      ends: [V] bool, the tokens after which a reply is over.
    """

    contexts: tuple[Context, ...]
    slots: Array | None
    tails: PageTable | None
    last_tokens: Array
    positions: Array
    offsets: Array
    keys: Array
    branches: Array
    temperature: Array
    limits: Array
    active: Array
    ends: Array


@flax.struct.dataclass
class Decoded:
    """What was decoded.

    Attributes:
      tokens: [R, T] int32, the one that ended the reply included; zero behind the end.
      log_probs: [R, T] float32 at temperature 1.
      lengths: [R] int32, how many there are; as many were read, the first being the row's last
        token and this one's last still to be read.
      ended: [R] bool, whether the last of them ends the reply.
    """

    tokens: Array
    log_probs: Array
    lengths: Array
    ended: Array


def read_own(pool: Pool, table: PageTable, tile: int, length: int) -> Reader:
    """Attention of conversations to their own pages; see `decode`."""
    if pool.backend.name == "pallas":
        return paged_attention.read_own(pool, table)
    return tile_lists.read_own(pool, table, tile, length)


def read_instructions(pool: Pool, context: Context, rows_of: jax.Array) -> Reader:
    """The same for the instructions: all queries [K, 1, M, H] read them together.

    Args:
      rows_of: [M] int32, the conversation of each query.
    """
    if pool.backend.name == "pallas":
        return paged_attention.read_instructions(pool, context, rows_of)
    table = context.instructions
    num_chunks = table.pages.shape[1] // CHUNK
    used = table.num_chunks(CHUNK)

    def copied(layer: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        def copy(c, chunks):
            return chunks.at[c].set(read_chunk(layer, table, c, CHUNK).transpose(axes))

        shape = jax.eval_shape(lambda: read_chunk(layer, table, 0, CHUNK).transpose(axes)).shape
        return jax.lax.fori_loop(0, used, copy, jnp.zeros((num_chunks, *shape), layer.dtype))

    k = [copied(layer, (0, 1, 3, 2)) for layer in pool.k]
    v = [copied(layer, (0, 1, 2, 3)) for layer in pool.v]

    def attention(l: int, q: jax.Array) -> Part:
        def read(c: jax.Array):
            mask = instruction_mask(context, c, CHUNK, pool.page_size)[rows_of]
            return k[l][c], v[l][c], mask

        return attend_chunks(q, read, used)

    return attention


def read_before(
    config: LlamaConfig,
    pool: Pool,
    rows: DecodeRows,
    branches: Sequence[int],
    tile: int,
    lengths: Sequence[int],
) -> Reader:
    """Attention of all rows' queries [K, R, N / K, H] to what they have in the pages: instructions,
    conversations, and what was decoded before; see `decode`."""
    R, K, H = rows.last_tokens.shape[0], config.num_kv_heads, config.head_dim
    shared_by = config.num_heads // K
    lanes = list(zip(branches, rows.contexts, strict=True))
    owns = [
        read_own(pool, context.own, tile, length)
        for context, length in zip(rows.contexts, lengths, strict=True)
    ]
    at_slots, by_rows = slotted(rows, branches)
    # All lanes' rows read the instructions together.
    begins_with = by_rows([jnp.repeat(c.begins_with, n)[None] for n, c in lanes])[0]
    everyone = dataclasses.replace(rows.contexts[0], begins_with=begins_with)
    instructions = read_instructions(pool, everyone, jnp.repeat(jnp.arange(R), shared_by))
    tails = None
    if rows.tails is not None:
        width = rows.tails.pages.shape[1]
        tail = min(tile, width)
        tails = read_own(pool, rows.tails, tail, R * (width // tail))

    def by_branch(x: jax.Array) -> jax.Array:
        """[K, G, n * M, ...] to [K, G * n, M, ...]."""
        return x.reshape(K, -1, shared_by, *x.shape[3:])

    def attention(l: int, q: jax.Array) -> Part:
        own = [
            read(l, queries.reshape(K, context.begins_with.shape[0], n * shared_by, H))
            for (n, context), read, queries in zip(lanes, owns, at_slots(q), strict=True)
        ]
        part = jax.tree.map(lambda *x: by_rows([by_branch(lane) for lane in x]), *own)
        instructed = jax.tree.map(by_branch, instructions(l, q.reshape(K, 1, -1, H)))
        part = merge(instructed, part)
        return part if tails is None else merge(part, tails(l, q))

    return attention


def slotted(rows: DecodeRows, branches: Sequence[int]):
    """From rows to the slots of each lane, and back.

    Returns:
      [X, R, ...] to each lane's [X, G * n, ...], where slots without a row hold that of another;
      and each lane's [X, G * n, ...] to [X, R, ...].
    """
    sizes = [n * c.begins_with.shape[0] for n, c in zip(branches, rows.contexts, strict=True)]
    if rows.slots is None:
        return lambda x: [x], lambda lanes: lanes[0]
    slots = jnp.asarray(rows.slots)
    D, R = slots.shape[0], slots.size
    ends = np.cumsum(sizes) // D
    row_at = jax.vmap(
        lambda own: jnp.zeros(ends[-1], jnp.int32).at[own].set(jnp.arange(R // D), mode="drop")
    )(slots)

    def taken(x: jax.Array, places: jax.Array) -> jax.Array:
        """Of [X, D, n, ...], on each device the given ones."""
        places = places.reshape(1, D, -1, *(1,) * (x.ndim - 3))
        return jnp.take_along_axis(x, places, axis=2, mode="clip")

    def at_slots(x: jax.Array) -> list[jax.Array]:
        x = taken(x.reshape(x.shape[0], D, R // D, *x.shape[2:]), row_at)
        return [
            lane.reshape(x.shape[0], -1, *x.shape[3:]) for lane in jnp.split(x, ends[:-1], axis=2)
        ]

    def by_rows(lanes: Sequence[jax.Array]) -> jax.Array:
        joined = [x.reshape(x.shape[0], D, x.shape[1] // D, *x.shape[2:]) for x in lanes]
        x = taken(jnp.concatenate(joined, axis=2), slots)
        return x.reshape(x.shape[0], R, *x.shape[3:])

    return at_slots, by_rows


def decode_tokens(
    params,
    config: LlamaConfig,
    pool: Pool,
    rows: DecodeRows,
    *,
    branches: Sequence[int],
    length: int,
    tile: int,
    tiles: Sequence[int],
    filter: Filter,
) -> tuple[list[tuple[jax.Array, jax.Array]], Decoded]:
    """At most `length` tokens more for every row; see `decode`."""
    R, K, H = rows.last_tokens.shape[0], config.num_kv_heads, config.head_dim
    attend_before = read_before(config, pool, rows, branches, tile, tiles)
    keys = jax.vmap(lambda data, b: jax.random.fold_in(jax.random.wrap_key_data(data), b))(
        rows.keys, rows.branches
    )

    # The last rows of an odd number may be multiplied by another routine, whose rounding differs,
    # and a reply would depend on its place: products have a multiple of eight.
    missing = -R % 8

    def filled_up(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))

    # Once for all tokens: within the loop every layer would compute its sines anew.
    sin, cos = llama.rope(filled_up(rows.positions)[:, None] + jnp.arange(length), config)

    def taken(x: jax.Array, j: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, j, 1, axis=1)

    def put(own: jax.Array, new: jax.Array, j: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(own, new.transpose(2, 0, 1, 3), (0, 0, j, 0))

    def attend_to(l: int, block, j: jax.Array):
        def attention(q: jax.Array, k: jax.Array, v: jax.Array):
            q, k, v = q[:R], k[:R], v[:R]
            own_k, own_v = put(block[0], k, j), put(block[1], v, j)
            q = by_kv_head(q, K)
            own = attend(q, own_k.swapaxes(2, 3), own_v, jnp.arange(length) <= j)
            out = result(merge(attend_before(l, q), own))
            return filled_up(by_position(out, 1).astype(q.dtype)), (own_k, own_v)

        return attention

    def step(state):
        j, last, done, blocks, out = state
        x = llama.embed(params, filled_up(last)[:, None])
        rotation = taken(sin, j), taken(cos, j)
        new = []
        for l in range(config.num_layers):
            attention = attend_to(l, blocks[l], j)
            x, kv = llama.block(params["layers"][l], config, x, rotation, attention)
            new.append(kv)
        logits = llama.logits(params, config, llama.final_norm(params, config, x)[:, 0])[:R]
        t = rows.offsets + j
        token, log_prob = sample(
            jax.vmap(jax.random.fold_in)(keys, t), logits, rows.temperature, filter
        )
        ending = ~done & rows.ends[token]
        out = Decoded(
            tokens=out.tokens.at[:, j].set(jnp.where(done, 0, token)),
            log_probs=out.log_probs.at[:, j].set(jnp.where(done, 0.0, log_prob)),
            lengths=out.lengths + ~done,
            ended=out.ended | ending,
        )
        return j + 1, jnp.where(done, last, token), done | ending | (t + 1 >= rows.limits), new, out

    k, v = (jnp.zeros((K, R, length, H), x[0].dtype) for x in (pool.k, pool.v))
    state = (
        jnp.int32(0),
        rows.last_tokens,
        ~rows.active,
        [(k, v)] * config.num_layers,
        Decoded(
            tokens=jnp.zeros((R, length), jnp.int32),
            log_probs=jnp.zeros((R, length), jnp.float32),
            lengths=jnp.zeros(R, jnp.int32),
            ended=jnp.zeros(R, bool),
        ),
    )
    state = jax.lax.while_loop(lambda s: (s[0] < length) & ~jnp.all(s[2]), step, state)
    return state[3], state[4]


@functools.partial(
    jax.jit, static_argnames=("config", "branches", "length", "tile", "tiles", "filter")
)
def decode(
    params,
    config: LlamaConfig,
    pool: Pool,
    rows: DecodeRows,
    *,
    branches: tuple[int, ...],
    length: int,
    tile: int,
    tiles: tuple[int, ...],
    filter: Filter,
) -> tuple[list[tuple[jax.Array, jax.Array]], Decoded]:
    """Decodes at most `length` tokens more for every row.

    The token of branch b at offset t depends on the conversation, its key, b and t alone.

    Args:
      branches: Of each lane, the slots of a conversation.
      tile: Pages of a conversation that are read together; divides the width of the page tables. Of
        what the rows have decoded before, as many or all.
      tiles: Of each lane, how many its conversations have together, at most
        (`tile_lists.num_tiles`).

    Returns:
      Each layer's (k, v) [K, R, T, H] of the tokens read, for `commit`, and the tokens.
    """
    return decode_tokens(
        params, config, pool, rows,
        branches=branches, length=length, tile=tile, tiles=tiles, filter=filter,
    )  # fmt: skip
