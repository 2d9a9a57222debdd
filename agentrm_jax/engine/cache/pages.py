"""The page pool and the page tables that attention reads, on the device.

A page holds the keys and values of up to `page_size` consecutive tokens of one segment. A sequence
is a row of a page table. Sequences with a common prefix name the same pages, and nothing is copied
when they branch. Keys are stored rotated to their true position: a page can be read without its
position.

G sequences, K KV heads, H numbers of a head.
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
from agentrm_jax.model.eight_bits import EightBits, Stored, encode, zeros
from agentrm_jax.runtime.sharding import named_sharding

PAGE_BLOCK = 8
"""Pages of a page table that attention reads at a time. Each shared prefix starts a block."""

Array = Any
"""A jax.Array on the device or a numpy array on the host."""

KeyValues = list[tuple[Stored, Stored]]
"""New keys and values of each layer, [K, R, T, H] each, in 8 bits if the pool is."""


@flax.struct.dataclass
class Pool:
    """The keys and values of all pages.

    TPUs store rows of 128 numbers: for `pallas`, narrow heads lie side by side and a page is
    [page_size * H / 128, 128].

    In 8 bits each token of each head has a scale of its own, [K, pages, page_size]. One scale for a
    page would depend on the other tokens of the page and on padding, so that a reply would depend
    on its batch; here new keys and values are rounded when they are computed, and read from then on
    as pages hold them.

    Attributes:
      k: For each layer [K, pages, page_size, H].
      v: For each layer [K, pages, page_size, H].
      page_size: Tokens of a page.
      backend: The attention backend that reads the pool.
    """

    k: tuple[Stored, ...]
    v: tuple[Stored, ...]
    page_size: int = flax.struct.field(pytree_node=False)
    backend: Backend = flax.struct.field(pytree_node=False, default=XLA)

    @property
    def num_pages(self) -> int:
        """The number of pages."""
        return self.k[0].shape[1]

    def stored(self, new: jax.Array) -> Stored:
        """Returns new keys or values [..., H] as the pages hold them."""
        return encode(new) if isinstance(self.k[0], EightBits) else new

    def empty(self, *shape: int) -> Stored:
        """Returns zeros [..., H] as the pages hold them."""
        kind = self.k[0].dtype
        return zeros(shape, kind) if isinstance(self.k[0], EightBits) else jnp.zeros(shape, kind)


@flax.struct.dataclass
class PageTable:
    """The pages of G sequences, in order.

    Attributes:
      pages: [G, C] int32 page numbers; 0 if unused.
      fills: [G, C] int32 number of tokens in each page; 0 if unused.
    """

    pages: Array
    fills: Array

    def num_blocks(self, size: int) -> jax.Array:
        """Returns the number of blocks of `size` pages up to the last used page: int32 scalar.

        There may be unused pages between shared prefixes.
        """
        used = jnp.max(jnp.where(self.fills > 0, jnp.arange(1, self.fills.shape[1] + 1), 0))
        return (used + size - 1) // size


@flax.struct.dataclass
class Context:
    """The cached keys and values that G sequences attend to: shared prefixes and own pages.

    Attributes:
      shared: Page table of one row [1, S]: every shared prefix of the batch, one after the other,
        each from the beginning of a block.
      shared_ids: [S] int32, the number of the shared prefix that a page belongs to; -1 if unused.
      prefix_ids: [G] int32, the number of each sequence's shared prefix; -1 if it has none.
      own: The pages of each sequence after its shared prefix.
    """

    shared: PageTable
    shared_ids: Array
    prefix_ids: Array
    own: PageTable

    def joined(self) -> PageTable:
        """Returns all pages of each sequence [G, S + C], used pages first.

        Their order carries no meaning: keys are rotated to their positions.
        """
        fills = jnp.where(self.shared_ids == self.prefix_ids[:, None], self.shared.fills, 0)
        pages = jnp.concatenate(
            [jnp.broadcast_to(self.shared.pages, fills.shape), self.own.pages], 1
        )
        fills = jnp.concatenate([fills, self.own.fills], axis=1)
        order = jnp.argsort(fills == 0, axis=1, stable=True)
        return PageTable(*(jnp.take_along_axis(x, order, axis=1) for x in (pages, fills)))


def make_pool(
    config: LlamaConfig,
    num_pages: int,
    page_size: int,
    dtype,
    mesh: jax.sharding.Mesh | None,
    attention: str = "xla",
    kv: str | None = None,
) -> Pool:
    """Returns an empty pool; with a mesh, KV heads are sharded over `tensor`.

    Args:
      config: The shape of the model.
      num_pages: The number of pages.
      page_size: Tokens of a page.
      dtype: Dtype of the model.
      mesh: The devices, or None for one.
      attention: The name of the attention backend.
      kv: `int8` for keys and values in 8 bits; None for the dtype of the model.
    """
    row = 128 if attention == "pallas" and config.head_dim < 128 else config.head_dim
    shape = (config.num_kv_heads, num_pages, page_size * config.head_dim // row, row)
    sharding = None if mesh is None else named_sharding(mesh, ("kv_heads",))

    def empty() -> Stored:
        return jnp.zeros(shape, dtype) if kv is None else zeros(shape, dtype)

    def make() -> Pool:
        k, v = (tuple(empty() for _ in range(config.num_layers)) for _ in "kv")
        return Pool(k=k, v=v, page_size=page_size, backend=Backend(name=attention, mesh=mesh))

    return jax.jit(make, out_shardings=sharding)()


def read_block(layer: Stored, table: PageTable, block: jax.Array | int, size: int) -> Stored:
    """Returns a block of `size` pages of every sequence from one layer's keys or values.

    Shape: [K, G, size * page_size, H].
    """
    pages = jax.lax.dynamic_slice_in_dim(table.pages, block * size, size, axis=1)
    K, _, page_size, _ = layer.shape

    def read(x: jax.Array) -> jax.Array:
        return x[:, pages].reshape(K, pages.shape[0], size * page_size, *x.shape[3:])

    return jax.tree.map(read, layer)


def block_mask(table: PageTable, block: jax.Array | int, size: int, page_size: int) -> jax.Array:
    """Returns which positions of a block hold tokens: [G, size * page_size] bool."""
    fills = jax.lax.dynamic_slice_in_dim(table.fills, block * size, size, axis=1)
    valid = jnp.arange(page_size) < fills[:, :, None]
    return valid.reshape(fills.shape[0], size * page_size)


def shared_mask(context: Context, block: jax.Array | int, size: int, page_size: int) -> jax.Array:
    """Returns which positions of a block of shared prefixes each sequence attends to.

    Shape: [G, size * page_size] bool.
    """
    ids = jax.lax.dynamic_slice_in_dim(context.shared_ids, block * size, size)
    own = context.prefix_ids[:, None] == jnp.repeat(ids, page_size)
    return own & block_mask(context.shared, block, size, page_size)


@functools.partial(jax.jit, donate_argnums=0)
def commit(pool: Pool, new: KeyValues, pages: jax.Array) -> Pool:
    """Writes new keys and values into pages.

    This is a separate program: in one that also reads the pool in a loop, the compiler copies the
    whole pool before it writes.

    Args:
      pool: Donated.
      new: For each layer (k, v) [K, R, T, H].
      pages: [R, T / page_size] int32; numbers beyond the pool are not written.
    """

    def write(layer: jax.Array, values: jax.Array) -> jax.Array:
        blocks = values.reshape(layer.shape[0], -1, *layer.shape[2:])
        return layer.at[:, pages.reshape(-1)].set(blocks.astype(layer.dtype), mode="drop")

    k, v = (tuple(layer[i] for layer in new) for i in (0, 1))
    return dataclasses.replace(
        pool, k=jax.tree.map(write, pool.k, k), v=jax.tree.map(write, pool.v, v)
    )
