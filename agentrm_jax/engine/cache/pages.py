"""The page pool: keys and values of every piece of text that a model has read.

A page holds the keys and values of up to `page_size` consecutive tokens of one piece (a prompt, an
observation, a reply). A conversation is a list of pages, so that conversations with a common
beginning share its pages and nothing is copied when they branch. Keys are stored rotated to their
true position: a page can be read without knowing where it stands.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.model.attention import XLA, Backend
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.sharding import named_sharding


@flax.struct.dataclass
class Pool:
    """Keys and values, for each layer [K, pages, page_size, H], and what reads them.

    A TPU keeps rows of 128 numbers: there narrow heads are laid side by side, a page is
    [page_size * H / 128, 128].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    page_size: int = flax.struct.field(pytree_node=False)
    backend: Backend = flax.struct.field(pytree_node=False, default=XLA)

    @property
    def num_pages(self) -> int:
        return self.k[0].shape[1]


Array = Any
"""A jax.Array, or a numpy array where it is still, or again, on the host."""


@flax.struct.dataclass
class PageTable:
    """The pages of G conversations, in order.

    Attributes:
      pages: [G, C] int32 page numbers; unused entries are 0.
      fills: [G, C] int32 number of tokens in each page; 0 for unused entries.
    """

    pages: Array
    fills: Array

    def num_chunks(self, chunk: int) -> jax.Array:
        """How many chunks of `chunk` pages hold all that is in use: int32 scalar.

        Between instructions there are unused pages: what counts is where the last one in use is.
        """
        used = jnp.max(jnp.where(self.fills > 0, jnp.arange(1, self.fills.shape[1] + 1), 0))
        return (used + chunk - 1) // chunk


@flax.struct.dataclass
class Context:
    """What G conversations have in the pages: an instruction that others share, and their own.

    Attributes:
      instructions: Page table of one row [1, S]: every instruction of the batch, one after the
        other, each from the beginning of a chunk.
      owners: [S] int32, which instruction a page belongs to; -1 for unused entries.
      begins_with: [G] int32, the instruction of each conversation; -1 for none.
      own: What follows it.
    """

    instructions: PageTable
    owners: Array
    begins_with: Array
    own: PageTable

    def joined(self) -> PageTable:
        """All pages of each conversation [G, S + C], those in use first. Their order says nothing
        about positions, which the keys bear."""
        shared = self.instructions
        mine = jnp.where(self.owners == self.begins_with[:, None], shared.fills, 0)
        pages = jnp.concatenate([jnp.broadcast_to(shared.pages, mine.shape), self.own.pages], 1)
        fills = jnp.concatenate([mine, self.own.fills], axis=1)
        order = jnp.argsort(fills == 0, axis=1, stable=True)
        return PageTable(*(jnp.take_along_axis(x, order, axis=1) for x in (pages, fills)))


def make_pool(
    config: LlamaConfig,
    num_pages: int,
    page_size: int,
    dtype,
    mesh: jax.sharding.Mesh | None,
    attention: str = "xla",
) -> Pool:
    """An empty pool; KV heads are sharded over `tensor` when there is a mesh."""
    row = 128 if attention == "pallas" and config.head_dim < 128 else config.head_dim
    shape = (config.num_kv_heads, num_pages, page_size * config.head_dim // row, row)
    sharding = None if mesh is None else named_sharding(mesh, ("kv_heads", None, None, None))

    def make() -> Pool:
        k, v = (tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for _ in "kv")
        return Pool(k=k, v=v, page_size=page_size, backend=Backend(name=attention, mesh=mesh))

    return jax.jit(make, out_shardings=sharding)()


def read_chunk(layer: jax.Array, table: PageTable, c: jax.Array | int, chunk: int) -> jax.Array:
    """Chunk `c` of every conversation from one layer's k or v: [K, G, chunk * page_size, H]."""
    pages = jax.lax.dynamic_slice_in_dim(table.pages, c * chunk, chunk, axis=1)
    K, _, page_size, H = layer.shape
    return layer[:, pages].reshape(K, pages.shape[0], chunk * page_size, H)


def chunk_mask(table: PageTable, c: jax.Array | int, chunk: int, page_size: int) -> jax.Array:
    """Which slots of chunk `c` hold tokens: [G, chunk * page_size] bool."""
    fills = jax.lax.dynamic_slice_in_dim(table.fills, c * chunk, chunk, axis=1)
    valid = jnp.arange(page_size) < fills[:, :, None]
    return valid.reshape(fills.shape[0], chunk * page_size)


def instruction_mask(context: Context, c: jax.Array | int, chunk: int, page_size: int) -> jax.Array:
    """Which conversations see which slots of instruction chunk `c`: [G, chunk * page_size] bool."""
    owners = jax.lax.dynamic_slice_in_dim(context.owners, c * chunk, chunk)
    seen = context.begins_with[:, None] == jnp.repeat(owners, page_size)
    return seen & chunk_mask(context.instructions, c, chunk, page_size)


@functools.partial(jax.jit, donate_argnums=0)
def commit(pool: Pool, new: list[tuple[jax.Array, jax.Array]], pages: jax.Array) -> Pool:
    """Writes each layer's new (k, v) [K, R, T, H] into pages [R, T / page_size].

    A page number past the end is dropped. This is a program of its own: in one that also reads the
    pool in a loop, the compiler copies the whole pool before it writes.
    """

    def write(layer: jax.Array, values: jax.Array) -> jax.Array:
        blocks = values.reshape(layer.shape[0], -1, *layer.shape[2:])
        return layer.at[:, pages.reshape(-1)].set(blocks.astype(layer.dtype), mode="drop")

    return dataclasses.replace(
        pool,
        k=tuple(write(layer, k) for layer, (k, _) in zip(pool.k, new, strict=True)),
        v=tuple(write(layer, v) for layer, (_, v) in zip(pool.v, new, strict=True)),
    )
