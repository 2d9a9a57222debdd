"""Branching decoding: n continuations of each of G conversations in one loop on the device.

The branches of a conversation share its prefix, which is read once for all of them; each branch
keeps its own short suffix of keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.engine.attention import (
    Part,
    attend,
    by_kv_head,
    by_position,
    merge,
    nothing,
    result,
)
from agentrm_jax.engine.pages import PageTable, Pool, chunk_mask, read_chunk
from agentrm_jax.engine.sampling import Filter, sample
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig


@flax.struct.dataclass
class DecodeGroups:
    """G conversations to continue.

    Attributes:
      prefix: Pages of each conversation without its last token.
      last_tokens: [G] int32, the last token: what decoding reads first.
      last_positions: [G] int32, its position.
      keys: [G, 2] uint32, random key data of each group.
      temperature: [G] float32; 0 is greedy.
      active: [G] bool; the others are padding and cost nothing but their place.
      stop: int32 scalar, the token that ends a reply.
      max_tokens: int32 scalar, at most the compiled length.
    """

    prefix: PageTable
    last_tokens: jax.Array
    last_positions: jax.Array
    keys: jax.Array
    temperature: jax.Array
    active: jax.Array
    stop: jax.Array
    max_tokens: jax.Array


@flax.struct.dataclass
class Replies:
    """What was decoded.

    Attributes:
      tokens: [G, n, T] int32, the stop token not included, zero behind the end.
      log_probs: [G, n, T] float32 at temperature 1.
      lengths: [G, n] int32.
      stopped: [G, n] bool, whether the model itself ended the reply.
      stop_log_probs: [G, n] float32, log-probability of the stop token where it was decoded.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array
    stopped: jax.Array
    stop_log_probs: jax.Array


def read_prefix(pool: Pool, table: PageTable, chunk: int) -> Callable[[int, jax.Array], Part]:
    """Copies the prefixes out of the pool, once for all tokens to come.

    Chunks are arrays of their own: slices of one array would be copied at every token.

    Returns:
      A function (layer, queries [K, G, M, H]) to their attention over the prefixes. Chunks that no
      conversation reaches cost nothing.
    """
    C = table.pages.shape[1]
    used = table.num_chunks(chunk)
    masks = [chunk_mask(table, c, chunk, pool.page_size)[None, :, None] for c in range(C // chunk)]

    def copied(layer: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
        def read(c: int) -> jax.Array:
            return read_chunk(layer, table, c, chunk).transpose(axes)

        return [
            jax.lax.cond(c < used, lambda c=c: read(c), lambda c=c: jnp.zeros_like(read(c)))
            for c in range(C // chunk)
        ]

    k = [copied(layer, (0, 1, 3, 2)) for layer in pool.k]
    v = [copied(layer, (0, 1, 2, 3)) for layer in pool.v]

    def attention(l: int, q: jax.Array) -> Part:
        part = nothing(q)
        for c, mask in enumerate(masks):
            part = jax.lax.cond(
                c < used,
                lambda part, c=c, mask=mask: merge(part, attend(q, k[l][c], v[l][c], mask)),
                lambda part: part,
                part,
            )
        return part

    return attention


def decode_replies(
    params,
    config: LlamaConfig,
    pool: Pool,
    groups: DecodeGroups,
    *,
    n: int,
    length: int,
    chunk: int,
    filter: Filter,
) -> Replies:
    """Decodes n replies of at most `length` tokens for each group; see `decode`."""
    G, K, H = groups.last_tokens.shape[0], config.num_kv_heads, config.head_dim
    R = G * n
    attend_prefix = read_prefix(pool, groups.prefix, chunk)
    layers = [
        llama.layer(params, l) for l in range(config.num_layers)
    ]  # sliced once, not per token
    keys = jax.vmap(
        lambda data: jax.vmap(lambda b: jax.random.fold_in(jax.random.wrap_key_data(data), b))(
            jnp.arange(n)
        )
    )(groups.keys).reshape(R)
    temperature = jnp.repeat(groups.temperature, n)
    starts = jnp.repeat(groups.last_positions, n)

    def attend_to(l: int, suffix, t: jax.Array):
        def attention(q: jax.Array, k: jax.Array, v: jax.Array):
            own_k = jax.lax.dynamic_update_slice(suffix[0], k.transpose(2, 0, 3, 1), (0, 0, 0, t))
            own_v = jax.lax.dynamic_update_slice(suffix[1], v.transpose(2, 0, 1, 3), (0, 0, t, 0))
            shared = by_kv_head(q.reshape(G, n, *q.shape[2:]), K)  # [K, G, n * N / K, H]
            part = attend_prefix(l, shared)
            own = attend(by_kv_head(q, K), own_k, own_v, jnp.arange(length) <= t)
            part = jax.tree.map(lambda x, y: x.reshape(y.shape), part, own)
            return by_position(result(merge(part, own)), 1).astype(q.dtype), (own_k, own_v)

        return attention

    def step(state):
        t, last, done, suffixes, out = state
        x = llama.embed(params, last[:, None])
        rotation = llama.rope((starts + t)[:, None], config)
        new = []
        for l in range(config.num_layers):
            x, kv = llama.block(layers[l], config, x, rotation, attend_to(l, suffixes[l], t))
            new.append(kv)
        logits = llama.logits(params, config, llama.final_norm(params, config, x)[:, 0])
        token_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        token, log_prob = sample(token_keys, logits, temperature, filter)
        stopping = ~done & (token == groups.stop)
        writing = ~done & ~stopping
        out = Replies(
            tokens=out.tokens.at[:, t].set(jnp.where(writing, token, 0)),
            log_probs=out.log_probs.at[:, t].set(jnp.where(writing, log_prob, 0.0)),
            lengths=out.lengths + writing,
            stopped=out.stopped | stopping,
            stop_log_probs=jnp.where(stopping, log_prob, out.stop_log_probs),
        )
        return t + 1, jnp.where(writing, token, last), done | stopping, new, out

    empty = (
        jnp.zeros((K, R, H, length), pool.k[0].dtype),
        jnp.zeros((K, R, length, H), pool.v[0].dtype),
    )
    state = (
        jnp.int32(0),
        jnp.repeat(groups.last_tokens, n),
        jnp.repeat(~groups.active, n),
        [empty] * config.num_layers,
        Replies(
            tokens=jnp.zeros((R, length), jnp.int32),
            log_probs=jnp.zeros((R, length), jnp.float32),
            lengths=jnp.zeros(R, jnp.int32),
            stopped=jnp.zeros(R, bool),
            stop_log_probs=jnp.zeros(R, jnp.float32),
        ),
    )
    limit = jnp.minimum(groups.max_tokens, length)
    state = jax.lax.while_loop(lambda s: (s[0] < limit) & ~jnp.all(s[2]), step, state)
    return jax.tree.map(lambda x: x.reshape(G, n, *x.shape[1:]), state[-1])


@functools.partial(jax.jit, static_argnames=("config", "n", "length", "chunk", "filter"))
def decode(
    params,
    config: LlamaConfig,
    pool: Pool,
    groups: DecodeGroups,
    *,
    n: int,
    length: int,
    chunk: int,
    filter: Filter,
) -> Replies:
    """Decodes n replies for each group.

    The token of branch b at offset t depends on the group's key, b, t and the conversation alone.

    Args:
      length: Most tokens of a reply.
      chunk: Pages of a prefix that are read together; divides the width of the page table.
    """
    return decode_replies(
        params, config, pool, groups, n=n, length=length, chunk=chunk, filter=filter
    )
