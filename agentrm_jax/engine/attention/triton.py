"""Paged attention on NVIDIA GPUs: a kernel that reads pages by their numbers.

It gives the same part as `parts.attend_blocks` over a page table and copies nothing out of the
pool. A program of the kernel takes some queries that share their keys (all branches of a sequence,
all heads that share a KV head) and walks over the pages of their sequence, some tokens at a time,
with a running softmax in float32. If there are too few sequences to keep a GPU busy, several
programs divide the pages of a sequence; their parts are merged.

Tokens are found one by one (page number times page size plus offset), so that pages can have any
size.

Shapes as in `parts`: K KV heads, G sequences, M queries of each that share the keys; S splits.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention.parts import (
    MASKED,
    Part,
    Reader,
    declared_bytes,
    merge_along,
)
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool
from agentrm_jax.model.attention import Backend
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import Stored
from agentrm_jax.runtime.sharding import logical_to_spec

HEAD_SIZES = (16, 32, 64, 128, 256)
"""Head sizes of the kernel: Triton computes with powers of two."""

_LEAST_QUERIES, _MOST_QUERIES = 16, 128  # of a program; a product has at least 16 rows
_PROGRAMS = 128  # wanted at least: about one for each multiprocessor
_MOST_SPLITS, _LEAST_TOKENS = 32, 256  # of a split
_MOST_NUMBERS = 2**31  # of keys that 32 bits can address
_NO_READER = -3  # label of padded queries; no page has it


def check_shapes(config: LlamaConfig) -> None:
    """Checks that the kernel can read a model's heads; pages can have any size.

    Raises:
      UserError: The size of the heads is not supported.
    """
    if config.head_dim not in HEAD_SIZES:
        *others, last = HEAD_SIZES
        raise UserError(
            f"must be xla because triton needs heads of {', '.join(map(str, others))} or {last}, "
            f"not {config.head_dim}",
            field="engine.attention",
        )


@flax.struct.dataclass
class Table:
    """The pages that the kernel reads for each of G sequences.

    Attributes:
      pages: [G, C] int32 page numbers.
      fills: [G, C] int32 number of tokens in each page.
      counts: [G] int32, the columns up to the last used page.
      labels: [C] int32 labels of the columns, or None: a query reads the pages with its label.
    """

    pages: jax.Array
    fills: jax.Array
    counts: jax.Array
    labels: jax.Array | None = None


def make_table(table: PageTable, labels: jax.Array | None = None) -> Table:
    """Returns what the kernel reads of a page table."""
    columns = jnp.arange(1, table.pages.shape[1] + 1, dtype=jnp.int32)
    counts = jnp.max(jnp.where(jnp.asarray(table.fills) > 0, columns, 0), axis=1)
    return Table(jnp.asarray(table.pages), jnp.asarray(table.fills), counts, labels)


def _kernel(table, q, k, v, *refs, page_size: int, tokens: int, splits: int):
    """Adds the tokens of a split of a sequence to the part of some queries.

    Args:
      table: Pages and fills [C] and the count [1] of the sequence.
      q: [Q, H] queries.
      k, v: [pages * page_size, H] of a KV head; in 8 bits also scales [pages * page_size].
      refs: Labels of the columns [C] and of the queries [Q], if there are any; and the part:
        weighted [Q, H], maximum and total [Q].
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    pages, fills, counts = table
    labels, readers = refs[:2] if len(refs) == 5 else (None, None)
    weighted, maximum, total = refs[-3:]
    queries, H = q[...], q.shape[1]
    precision = jax.lax.Precision.HIGHEST if queries.dtype == jnp.float32 else None
    dot = functools.partial(
        jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision
    )
    width = jnp.arange(H)[None, :]
    steps = (counts[0] * page_size + tokens - 1) // tokens
    each = (steps + splits - 1) // splits
    first = pl.program_id(2) * each

    def step(i, part):
        before, largest_before, total_before = part
        slot = i * tokens + jnp.arange(tokens)
        column = jnp.minimum(slot // page_size, pages.shape[0] - 1)
        offset = slot % page_size
        seen = (slot < pages.shape[0] * page_size) & (offset < plgpu.load(fills.at[column]))
        token = plgpu.load(pages.at[column]) * page_size + offset
        # Indices of both axes: slices next to indices cannot be interpreted.
        keys, values = (
            plgpu.load(x.at[token[:, None], width]).astype(queries.dtype) for x, *_ in (k, v)
        )
        scores = dot(queries, keys, (((1,), (1,)), ((), ()))) * H**-0.5
        key_scales, value_scales = ([plgpu.load(x.at[token]) for x in own] for _, *own in (k, v))
        for scales in key_scales:
            scores *= scales[None, :]
        seen = jnp.broadcast_to(seen[None, :], scores.shape)
        if labels is not None and readers is not None:
            seen &= plgpu.load(labels.at[column])[None, :] == readers[...][:, None]
        scores = jnp.where(seen, scores, MASKED)
        largest = jnp.maximum(largest_before, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - largest[:, None]), 0.0)
        kept = jnp.exp(largest_before - largest)
        factors = weights
        for scales in value_scales:
            factors *= scales[None, :]
        added = dot(factors.astype(values.dtype), values, (((1,), (0,)), ((), ())))
        return (
            before * kept[:, None] + added,
            largest,
            total_before * kept + jnp.sum(weights, axis=1),
        )

    empty = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[0], MASKED, jnp.float32),
        jnp.zeros(q.shape[0], jnp.float32),
    )
    part = jax.lax.fori_loop(first, jnp.minimum(first + each, steps), step, empty)
    weighted[...], maximum[...], total[...] = part


def _attend(table: Table, readers, q, k, v, interpret: bool) -> Part:
    """`attend_pages` on one device."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    (K, G, M, H), page_size = q.shape, k.shape[2]
    check_pool(k)
    k, v = (
        tuple(x.reshape(K, -1, *x.shape[3:]) for x in jax.tree.leaves(layer)) for layer in (k, v)
    )  # values, and scales if they are in 8 bits
    C, size = table.pages.shape[1], queries_of_program(M)
    blocks, missing = -(-M // size), -M % size
    most = 64 if k[0].dtype.itemsize * H <= 256 else 32
    tokens = min(most, max(16, 1 << (C * page_size - 1).bit_length()))
    splits = _splits(K * G * blocks, C * page_size // _LEAST_TOKENS)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, missing), (0, 0)))

    def of_sequence(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, width), lambda g, h, s: (g // blocks, 0))

    def of_head(x: jax.Array) -> pl.BlockSpec:
        zeros = (0,) * (x.ndim - 1)
        return pl.BlockSpec((None, *x.shape[1:]), lambda g, h, s: (h, *zeros))

    def of_queries(g, h, s):
        return h, g // blocks, g % blocks, 0

    inputs: list = [(table.pages, table.fills, table.counts[:, None]), q, k, v]
    in_specs: list = [(of_sequence(C), of_sequence(C), of_sequence(1))]
    in_specs += [pl.BlockSpec((None, None, size, H), of_queries)]
    in_specs += [tuple(map(of_head, x)) for x in (k, v)]
    if readers is not None:
        assert table.labels is not None
        inputs += [
            table.labels,
            jnp.pad(readers, ((0, 0), (0, missing)), constant_values=_NO_READER),
        ]
        in_specs += [
            pl.BlockSpec((C,), lambda g, h, s: (0,)),
            pl.BlockSpec((None, size), lambda g, h, s: of_queries(g, h, s)[1:3]),
        ]
    shape = (splits, K, G, M + missing)
    call = pl.pallas_call(
        functools.partial(_kernel, page_size=page_size, tokens=tokens, splits=splits),
        grid=(G * blocks, K, splits),
        in_specs=in_specs,
        out_specs=[
            pl.BlockSpec((None, None, None, size, H), lambda g, h, s: (s, *of_queries(g, h, s))),
            *[pl.BlockSpec((None, None, None, size), lambda g, h, s: (s, *of_queries(g, h, s)[:3]))]
            * 2,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((*shape, H), jnp.float32),
            *[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2,
        ],
        compiler_params=plgpu.CompilerParams(num_warps=8 if size > 64 else 4, num_stages=2),
        interpret=interpret,
        name="paged_attention",
    )
    moved = q.size * q.dtype.itemsize + 4 * (2 * G * C + splits * K * G * (M + missing) * (H + 2))
    # Programs with queries of one sequence run side by side and find its pages in the cache.
    head = sum(x[0, 0].size * x.dtype.itemsize for x in k)
    with declared_bytes(moved, 2 * K * G * C * page_size * head):
        parts = Part(*call(*inputs))
    return Part(*(x[:, :, :M] for x in merge_along(parts, axis=0)))


def check_pool(k: Stored) -> None:
    """Refuses the keys [K, pages, page_size, H] of a layer that 32 bits cannot address."""
    K, num_pages, page_size, H = k.shape
    if K * num_pages * page_size * H >= _MOST_NUMBERS:
        raise UserError(
            field="engine.cache_tokens",
            value=num_pages * page_size,
            expected=f"at most {(_MOST_NUMBERS - 1) // (K * H):,} with engine.attention: triton",
        )


def queries_of_program(M: int) -> int:
    """Returns the queries of a program: the least power of two that holds all, or the most."""
    return min(_MOST_QUERIES, max(_LEAST_QUERIES, 1 << (M - 1).bit_length()))


def _splits(programs: int, most: int) -> int:
    """The programs that divide the pages of a sequence: a power of two."""
    wanted = min(_MOST_SPLITS, -(-_PROGRAMS // programs), max(1, most))
    return 1 << (wanted - 1).bit_length()


def attend_pages(
    q: jax.Array,
    k: Stored,
    v: Stored,
    table: Table,
    backend: Backend,
    readers: jax.Array | None = None,
) -> Part:
    """Returns the part of queries [K, G, M, H] over pages of one layer's k and v, as in `Pool`.

    Args:
      q: The queries.
      k: Keys [K, pages, page_size, H].
      v: Values, of the same shape.
      table: The pages of the G sequences.
      backend: The devices, and whether the kernel is interpreted.
      readers: [G, M] int32 labels of the queries: a query reads the pages with its label. By
        default it reads all.
    """
    attend = functools.partial(_attend, interpret=backend.interpret)
    mesh = backend.mesh
    if mesh is None:
        return attend(table, readers, q, k, v)
    data = mesh.shape["data"]
    groups = "rows" if q.shape[1] % data == 0 else None
    queries = "rows" if groups is None and q.shape[2] % data == 0 else None
    rows, everywhere = logical_to_spec((groups,)), logical_to_spec(())
    tables = Table(rows, rows, rows, None if table.labels is None else everywhere)  # pyright: ignore
    by_query, pool = logical_to_spec(("kv_heads", groups, queries)), logical_to_spec(("kv_heads",))
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(
            tables,
            None if readers is None else logical_to_spec((groups, queries)),
            by_query,
            pool,
            pool,
        ),
        out_specs=by_query,
        check_vma=False,
    )(table, readers, q, k, v)


def attend_rows(q: jax.Array, k: Stored, v: Stored, used: jax.Array, backend: Backend) -> Part:
    """Returns the part of queries [K, R, M, H] over the first tokens of their rows.

    A row is read as a page of its own.

    Args:
      q: The queries of R rows.
      k: Keys [K, R, T, H].
      v: Values, of the same shape.
      used: int32 scalar, the tokens of each row that are there.
      backend: The devices, and whether the kernel is interpreted.
    """

    def attend(q: jax.Array, k: Stored, v: Stored, used: jax.Array) -> Part:
        rows = jnp.arange(k.shape[1], dtype=jnp.int32)
        fills = jnp.full_like(rows[:, None], used)
        table = Table(rows[:, None], fills, jnp.ones_like(rows))
        return _attend(table, None, q, k, v, backend.interpret)

    if backend.mesh is None:
        return attend(q, k, v, used)
    rows = "rows" if q.shape[1] % backend.mesh.shape["data"] == 0 else None
    by_row, everywhere = logical_to_spec(("kv_heads", rows)), logical_to_spec(())
    return jax.shard_map(
        attend,
        mesh=backend.mesh,
        in_specs=(by_row, by_row, by_row, everywhere),
        out_specs=by_row,
        check_vma=False,
    )(q, k, v, used)


def own_pages(pool: Pool, table: PageTable) -> Reader:
    """Returns attention of each sequence to its own pages."""
    read = make_table(table)
    return lambda l, q: attend_pages(q, pool.k[l], pool.v[l], read, pool.backend)


def shared_pages(pool: Pool, context: Context, sequence_of: jax.Array) -> Reader:
    """Returns attention of queries [K, 1, M, H] to shared prefixes, each to that of its sequence.

    Args:
      pool: The pages.
      context: The shared prefixes and the prefix of each sequence.
      sequence_of: [M] int32, the sequence of each query.
    """
    read = make_table(context.shared, jnp.asarray(context.shared_ids))
    readers = jnp.asarray(context.prefix_ids)[sequence_of][None]
    return lambda l, q: attend_pages(q, pool.k[l], pool.v[l], read, pool.backend, readers)
