"""The page pool: keys and values of every piece of text that a model has read.

A page holds the keys and values of up to `page_size` consecutive tokens of one piece (a prompt, an
observation, a reply). A conversation is a list of pages, so that conversations with a common
beginning share its pages and nothing is copied when they branch. Keys are stored rotated to their
true position: a page can be read without knowing where it stands.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.core.sharding import named_sharding
from agentrm_jax.model.config import LlamaConfig


@flax.struct.dataclass
class Pool:
    """Keys and values, for each layer [K, pages, page_size, H]."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @property
    def page_size(self) -> int:
        return self.k[0].shape[2]

    @property
    def num_pages(self) -> int:
        return self.k[0].shape[1]


@flax.struct.dataclass
class PageTable:
    """The pages of G conversations, in order.

    Attributes:
      pages: [G, C] int32 page numbers; unused entries are 0.
      fills: [G, C] int32 number of tokens in each page; 0 for unused entries.
    """

    pages: jax.Array
    fills: jax.Array

    def num_chunks(self, chunk: int) -> jax.Array:
        """How many chunks of `chunk` pages hold all that is in use: int32 scalar."""
        used = jnp.max(jnp.sum(self.fills > 0, axis=1))
        return (used + chunk - 1) // chunk


def make_pool(
    config: LlamaConfig, num_pages: int, page_size: int, dtype, mesh: jax.sharding.Mesh | None
) -> Pool:
    """An empty pool; KV heads are sharded over `tensor` when there is a mesh."""
    shape = (config.num_kv_heads, num_pages, page_size, config.head_dim)
    sharding = None if mesh is None else named_sharding(mesh, ("kv_heads", None, None, None))
    layers = range(config.num_layers)
    return Pool(
        k=tuple(jnp.zeros(shape, dtype, device=sharding) for _ in layers),
        v=tuple(jnp.zeros(shape, dtype, device=sharding) for _ in layers),
    )


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


@functools.partial(jax.jit, donate_argnums=0)
def commit(pool: Pool, new: list[tuple[jax.Array, jax.Array]], pages: jax.Array) -> Pool:
    """Writes each layer's new (k, v) [R, T, K, H] into pages [R, T / page_size].

    A page number past the end is dropped. This is a program of its own: in one that also reads the
    pool in a loop, the compiler copies the whole pool before it writes.
    """

    def write(layer: jax.Array, values: jax.Array) -> jax.Array:
        K, _, page_size, H = layer.shape
        R, T = values.shape[:2]
        blocks = values.transpose(2, 0, 1, 3).reshape(K, R * T // page_size, page_size, H)
        return layer.at[:, pages.reshape(-1)].set(blocks.astype(layer.dtype), mode="drop")

    return Pool(
        k=tuple(write(layer, k) for layer, (k, _) in zip(pool.k, new, strict=True)),
        v=tuple(write(layer, v) for layer, (_, v) in zip(pool.v, new, strict=True)),
    )
