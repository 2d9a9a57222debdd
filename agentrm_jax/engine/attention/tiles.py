"""Attention of decoding to pages that were copied out of the pool, as a list of tiles.

A tile is some consecutive pages of one conversation. Conversations have as many tiles as they have
pages, and a list holds those of all of them: what is copied, and read at every token, is what there
is, not as many conversations as there are places times the longest of them. Each tile gives a part;
those of a conversation are merged.

Shapes as in `attention`: K KV heads, G conversations, M queries of each that share the keys; P
tiles in a list, and D lists where conversations lie on different devices.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.attention.parts import (
    MASKED,
    Part,
    Reader,
    attend,
    merge,
    merge_along,
    nothing,
)
from agentrm_jax.engine.cache.pages import PageTable, Pool
from agentrm_jax.model.attention import Backend, device_of

TOGETHER = 8
"""So many tiles of each conversation are merged at a time, as far as the longest conversation."""

RUNS, LEAST = 8, 16
"""Where runs are left out: most runs of a list, and the tiles of the smallest where there are more
than two."""


class Tiles(NamedTuple):
    """Lists of tiles.

    Attributes:
      pages: [D, P, tile] int32 page numbers.
      filled: [D, P, tile * page_size] bool, which slots hold tokens.
      owners: [D, P] int32, the conversation of each tile among the G / D of its list.
      places: [D, G / D, C] int32, where the tiles of each conversation stand; P for none. C is a
        multiple of `TOGETHER`, or less.
      longest: int32 scalar, most tiles of a conversation.
      used: int32 scalar, most tiles of a list.
    """

    pages: jax.Array
    filled: jax.Array
    owners: jax.Array
    places: jax.Array
    longest: jax.Array
    used: jax.Array


def num_lists(conversations: int, mesh: jax.sharding.Mesh | None) -> int:
    """One for each device along `data`, where they have equally many conversations."""
    data = 1 if mesh is None else mesh.shape["data"]
    return 1 if conversations % data else data


def num_tiles(fills: np.ndarray, tile: int, lists: int) -> int:
    """How many tiles lists of equal length need for page fills [G, pages], on the host."""
    used = fills.reshape(lists, -1, tile).any(axis=-1)
    return lists * int(used.sum(axis=1).max())


def list_tiles(table: PageTable, page_size: int, tile: int, length: int, lists: int) -> Tiles:
    """The tiles of a page table, which must not be more than `length` in all lists together."""
    P = length // lists
    G, pages = table.pages.shape
    missing = -(pages // tile) % TOGETHER if pages > TOGETHER * tile else 0

    def listed(pages: jax.Array, fills: jax.Array) -> Tiles:
        """Of conversations [G / D, tiles, tile]."""
        used = jnp.any(fills > 0, axis=-1)
        [found] = jnp.nonzero(used.reshape(-1), size=P, fill_value=0)
        there = jnp.arange(P) < used.sum()
        fills = jnp.where(there[:, None], fills.reshape(-1, tile)[found], 0)
        places = jnp.where(used, jnp.cumsum(used).reshape(used.shape) - 1, P)
        return Tiles(
            pages=pages.reshape(-1, tile)[found],
            filled=(jnp.arange(page_size) < fills[..., None]).reshape(P, -1),
            owners=found // pages.shape[1],
            places=jnp.pad(places, ((0, 0), (0, missing)), constant_values=P),
            longest=used.sum(axis=1).max(),
            used=used.sum(),
        )

    shape = (lists, G // lists, pages // tile, tile)
    tiles = jax.vmap(listed)(table.pages.reshape(shape), table.fills.reshape(shape))
    return tiles._replace(longest=tiles.longest.max(), used=tiles.used.max())


def shares(backend: Backend) -> tuple[float, ...]:
    """Lengths of list to have a program for, as shares of what all places could hold. Fewer on
    CPUs, where room that is not needed costs little; the TPU kernel reads no lists."""
    if backend.name == "pallas":
        return (1.0,)
    return (0.1, 0.3, 1.0) if _leaves_out(backend) else (0.1, 0.2, 0.3, 0.45, 1.0)


def _leaves_out(backend: Backend) -> bool:
    """Whether runs without any tile are left out: a CPU waits for memory, elsewhere a branch costs
    more than reading a list as a whole."""
    return device_of(backend.mesh).platform == "cpu"


def _runs(length: int, backend: Backend) -> list[slice]:
    """How a list is divided."""
    runs = min(RUNS, max(2, length // LEAST)) if _leaves_out(backend) else 1
    size = 8 * -(-length // (8 * runs))
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def read_own(pool: Pool, table: PageTable, tile: int, length: int) -> Reader:
    """Copies conversations out of the pool, once for all tokens to come."""
    G = table.pages.shape[0]
    D = num_lists(G, pool.backend.mesh)
    tiles = list_tiles(table, pool.page_size, tile, length, D)
    runs = _runs(length // D, pool.backend)
    K, _, _, H = pool.k[0].shape

    def copied(run: slice, layer: jax.Array) -> jax.Array:
        return layer[:, tiles.pages[:, run]].reshape(K, -1, tile * pool.page_size, H)

    k = [[copied(run, layer).swapaxes(2, 3) for run in runs] for layer in pool.k]
    v = [[copied(run, layer) for run in runs] for layer in pool.v]

    def attention(l: int, q: jax.Array) -> Part:
        M = q.shape[2]
        by_list = q.reshape(K, D, G // D, M, H)

        def read(run: slice, k: jax.Array, v: jax.Array) -> Part:
            owners = tiles.owners[None, :, run, None, None]
            of_tiles = jnp.take_along_axis(by_list, owners, axis=2).reshape(K, -1, M, H)
            filled = tiles.filled[:, run].reshape(1, of_tiles.shape[1], 1, -1)
            part = attend(of_tiles, k, v, filled)
            return jax.tree.map(lambda x: x.reshape(K, D, -1, *x.shape[2:]), part)

        def read_if_used(run: slice, k: jax.Array, v: jax.Array) -> Part:
            def leave() -> Part:
                """Anything of that shape: no conversation refers to it."""
                return nothing(jnp.zeros((K, D, run.stop - run.start, M, H), q.dtype))

            used = run.start < tiles.used
            return jax.lax.cond(used, functools.partial(read, run, k, v), leave)

        found = map(read_if_used if len(runs) > 1 else read, runs, k[l], v[l])
        parts = jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *found)

        def by_conversation(places: jax.Array) -> Part:
            """Of [K, D, P, M, ...] those at places [D, G / D, C], merged: [K, G, M, ...]."""

            def taken(x: jax.Array, empty: float) -> jax.Array:
                at = places.reshape(1, D, -1, *(1,) * (x.ndim - 3))
                x = jnp.take_along_axis(x, at, axis=2, mode="fill", fill_value=empty)
                return x.reshape(K, G, -1, *x.shape[3:])

            return merge_along(Part(*map(taken, parts, (0.0, MASKED, 0.0))), axis=2)

        if tiles.places.shape[2] <= TOGETHER:
            return by_conversation(tiles.places)

        def add(c: jax.Array, part: Part) -> Part:
            places = jax.lax.dynamic_slice_in_dim(tiles.places, c * TOGETHER, TOGETHER, axis=2)
            return merge(part, by_conversation(places))

        return jax.lax.fori_loop(0, (tiles.longest + TOGETHER - 1) // TOGETHER, add, nothing(q))

    return attention
