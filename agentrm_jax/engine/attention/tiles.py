"""Decode attention to pages that were copied out of the pool, in tiles (`xla` and `cudnn`).

A tile is some consecutive pages of one sequence. A batch has as many tiles as its sequences have
pages, and not as many as its longest sequence times its rows: the tiles are copied once and read at
every token. Each tile gives a part; the parts of a sequence are merged.

The number of tiles is part of the compiled program. It is rounded up to one of a few buckets.

Shapes as in `parts`: K KV heads, G sequences, M queries of each that share the keys; P tiles on a
device, and D devices along `data` (1 if they do not divide G).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.attention.parts import (
    MASKED,
    Part,
    Reader,
    attend,
    empty_part,
    keys_last,
    merge,
    merge_along,
)
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool
from agentrm_jax.model.attention import Backend, device_of
from agentrm_jax.model.eight_bits import Stored

MERGED_TOGETHER = 8
"""Tiles of each sequence that are merged at a time, up to the longest sequence."""

MOST_RUNS, LEAST_RUN = 8, 16
"""On CPUs tiles are read in runs, and a run without used tiles is skipped: the most runs, and the
tiles of the shortest run if there are more than two."""


class Tiles(NamedTuple):
    """The tiles of a page table.

    Attributes:
      pages: [D, P, tile] int32 page numbers.
      filled: [D, P, tile * page_size] bool, whether a position holds a token.
      sequences: [D, P] int32, the sequence of each tile among the G / D of its device.
      indices: [D, G / D, C] int32, the tiles of each sequence; P for none. C is a multiple of
        `MERGED_TOGETHER`, or less.
      longest: int32 scalar, most tiles of a sequence.
      used: int32 scalar, most tiles of a device.
    """

    pages: jax.Array
    filled: jax.Array
    sequences: jax.Array
    indices: jax.Array
    longest: jax.Array
    used: jax.Array


def num_divisions(num_sequences: int, mesh: jax.sharding.Mesh | None) -> int:
    """Returns D: the devices along `data` if they divide the sequences, else 1."""
    data = 1 if mesh is None else mesh.shape["data"]
    return 1 if num_sequences % data else data


def num_tiles(fills: np.ndarray, tile: int, divisions: int) -> int:
    """Returns the number of tiles for page fills [G, pages], equally many for each division."""
    used = fills.reshape(divisions, -1, tile).any(axis=-1)
    return divisions * int(used.sum(axis=1).max())


def bucket(
    contexts: Sequence[Context], tile: int, backend: Backend, at_least: float = 0.0
) -> tuple[int, ...]:
    """Returns the number of tiles that a program reads for each context: the least bucket.

    Args:
      contexts: On the host.
      tile: Pages of a tile.
      at_least: The least of `bucket_fractions` to use.
    """
    divisions = [num_divisions(len(c.prefix_ids), backend.mesh) for c in contexts]
    most = [c.own.fills.size // tile for c in contexts]
    needed = [
        num_tiles(context.own.fills, tile, n)
        for context, n in zip(contexts, divisions, strict=True)
    ]
    longest = contexts[0].own.fills.shape[1] // tile

    def sizes(fraction: float) -> tuple[int, ...]:
        """At least the tiles of the longest sequence, and a multiple of eight: the ends of shorter
        vectors are computed by other instructions, and a reply would depend on the program."""
        return tuple(
            8 * n * math.ceil(max(fraction * m / n, longest) / 8)
            for m, n in zip(most, divisions, strict=True)
        )

    every = (sizes(fraction) for fraction in bucket_fractions(backend) if fraction >= at_least)
    return next(s for s in every if all(a <= b for a, b in zip(needed, s, strict=True)))


def bucket_fractions(backend: Backend) -> tuple[float, ...]:
    """Returns the buckets, as fractions of the tiles that full page tables would have.

    There are fewer on CPUs, where unused tiles cost little; kernels that read pages need no tiles.
    """
    if backend.reads_pages:
        return (1.0,)
    return (0.1, 0.3, 1.0) if _skips_runs(backend) else (0.1, 0.2, 0.3, 0.45, 1.0)


def _skips_runs(backend: Backend) -> bool:
    """Whether runs without tiles are skipped: on CPUs, which are bound by memory. Elsewhere a
    branch costs more than reading all tiles."""
    return device_of(backend.mesh).platform == "cpu"


def _runs(length: int, backend: Backend) -> list[slice]:
    """The runs in which `length` tiles are read."""
    runs = min(MOST_RUNS, max(2, length // LEAST_RUN)) if _skips_runs(backend) else 1
    size = 8 * -(-length // (8 * runs))
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def cut_tiles(table: PageTable, page_size: int, tile: int, num_tiles: int, divisions: int) -> Tiles:
    """Returns the tiles of a page table: at most `num_tiles` in all divisions together."""
    P = num_tiles // divisions
    G, pages = table.pages.shape
    missing = -(pages // tile) % MERGED_TOGETHER if pages > MERGED_TOGETHER * tile else 0

    def cut(pages: jax.Array, fills: jax.Array) -> Tiles:
        """The tiles of sequences [G / D, tiles, tile]."""
        used = jnp.any(fills > 0, axis=-1)
        [found] = jnp.nonzero(used.reshape(-1), size=P, fill_value=0)
        valid = jnp.arange(P) < used.sum()
        fills = jnp.where(valid[:, None], fills.reshape(-1, tile)[found], 0)
        indices = jnp.where(used, jnp.cumsum(used).reshape(used.shape) - 1, P)
        return Tiles(
            pages=pages.reshape(-1, tile)[found],
            filled=(jnp.arange(page_size) < fills[..., None]).reshape(P, -1),
            sequences=found // pages.shape[1],
            indices=jnp.pad(indices, ((0, 0), (0, missing)), constant_values=P),
            longest=used.sum(axis=1).max(),
            used=used.sum(),
        )

    shape = (divisions, G // divisions, pages // tile, tile)
    tiles = jax.vmap(cut)(table.pages.reshape(shape), table.fills.reshape(shape))
    return tiles._replace(longest=tiles.longest.max(), used=tiles.used.max())


def own_tiles(pool: Pool, table: PageTable, tile: int, num_tiles: int) -> Reader:
    """Returns attention of sequences to their own pages, copied out of the pool once.

    Args:
      tile: Pages of a tile; divides the width of the table.
      num_tiles: Most tiles of all sequences together.
    """
    G = table.pages.shape[0]
    D = num_divisions(G, pool.backend.mesh)
    tiles = cut_tiles(table, pool.page_size, tile, num_tiles, D)
    runs = _runs(num_tiles // D, pool.backend)
    K, _, _, H = pool.k[0].shape

    def copied(run: slice, layer: Stored) -> Stored:
        def copy(x: jax.Array) -> jax.Array:
            return x[:, tiles.pages[:, run]].reshape(K, -1, tile * pool.page_size, *x.shape[3:])

        return jax.tree.map(copy, layer)

    k = [[keys_last(copied(run, layer)) for run in runs] for layer in pool.k]
    v = [[copied(run, layer) for run in runs] for layer in pool.v]

    def attention(l: int, q: jax.Array) -> Part:
        M = q.shape[2]
        by_device = q.reshape(K, D, G // D, M, H)

        def read(run: slice, k: Stored, v: Stored) -> Part:
            sequences = tiles.sequences[None, :, run, None, None]
            of_tiles = jnp.take_along_axis(by_device, sequences, axis=2).reshape(K, -1, M, H)
            filled = tiles.filled[:, run].reshape(1, of_tiles.shape[1], 1, -1)
            part = attend(of_tiles, k, v, filled)
            return jax.tree.map(lambda x: x.reshape(K, D, -1, *x.shape[2:]), part)

        def read_if_used(run: slice, k: Stored, v: Stored) -> Part:
            def skip() -> Part:
                """Any part of that shape: no sequence refers to it."""
                return empty_part(jnp.zeros((K, D, run.stop - run.start, M, H), q.dtype))

            used = run.start < tiles.used
            return jax.lax.cond(used, functools.partial(read, run, k, v), skip)

        found = map(read_if_used if len(runs) > 1 else read, runs, k[l], v[l])
        parts = jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *found)
        return _merge_sequences(parts, tiles, q)

    return attention


def _merge_sequences(parts: Part, tiles: Tiles, q: jax.Array) -> Part:
    """Merges the parts [K, D, P, M, ...] of each sequence's tiles: [K, G, M, ...]."""
    K, G = q.shape[:2]
    D = tiles.pages.shape[0]

    def merged(indices: jax.Array) -> Part:
        """The merged parts at indices [D, G / D, C]."""

        def gather(x: jax.Array, empty: float) -> jax.Array:
            at = indices.reshape(1, D, -1, *(1,) * (x.ndim - 3))
            x = jnp.take_along_axis(x, at, axis=2, mode="fill", fill_value=empty)
            return x.reshape(K, G, -1, *x.shape[3:])

        return merge_along(Part(*map(gather, parts, (0.0, MASKED, 0.0))), axis=2)

    size = MERGED_TOGETHER
    if tiles.indices.shape[2] <= size:
        return merged(tiles.indices)

    def add(c: jax.Array, part: Part) -> Part:
        indices = jax.lax.dynamic_slice_in_dim(tiles.indices, c * size, size, axis=2)
        return merge(part, merged(indices))

    return jax.lax.fori_loop(0, (tiles.longest + size - 1) // size, add, empty_part(q))
