"""Paged attention on TPUs: a kernel that reads pages by their numbers.

It gives the same part as `parts.attend_blocks` over a page table and copies nothing out of the
pool. The pages are cut into steps: a step loads some pages of one sequence, for all of its queries
and KV heads, and adds them to the sequence's part (a running softmax in float32). Sequences take as
many steps as they have pages; the number of steps is known at run time only.

Rows of a page are 128 numbers wide. If a head is narrower, F = 128 / H tokens lie side by side in a
row, and each query becomes F queries: one for each token of a row, with zeros for the others. Their
parts are merged.

Shapes as in `parts`: K KV heads, G sequences, M queries of each that share the keys.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention.parts import MASKED, Part, Reader, declared_bytes, merge
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool
from agentrm_jax.model.attention import Backend
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import EightBits
from agentrm_jax.runtime.sharding import logical_to_spec

_WIDTH = 128  # numbers of a register; about as many rows of pages are read by a step
_MOST_QUERIES = 128  # of a sequence in a step; with more, its pages are read again
_MOST_NUMBERS = 240_000  # page and step numbers in the scalar memory of 1 MiB
_UNUSED = -2  # label of a position without a token; no query reads it


def check_shapes(config: LlamaConfig, page_size: int) -> None:
    """Checks that the kernel can read a model's heads and the pages.

    Raises:
      UserError: The size of the heads or of the pages is not supported.
    """
    H = config.head_dim
    if H % _WIDTH and H != _WIDTH // 2:
        raise UserError(
            f"must be xla because pallas needs heads of 64 or multiples of 128, not {H}",
            field="engine.attention",
        )
    least = 8 * _WIDTH // min(H, _WIDTH)
    if page_size % least:
        raise UserError(
            f"must be a multiple of {least} for heads of {H} with engine.attention: pallas",
            field="engine.page_size",
            value=page_size,
        )


@flax.struct.dataclass
class Steps:
    """The steps of the kernel: at most S, of P pages each.

    Attributes:
      groups: [S] int32, the sequence of each step; the steps of a sequence are consecutive.
      pages: [S * P] int32 page numbers.
      labels: [S, F, P * page_size / F] int32: a query reads the positions with its label.
      count: [1] int32, the number of steps. Each sequence has at least one.
      split: Whether each device has the steps of its own sequences.
    """

    groups: jax.Array
    pages: jax.Array
    labels: jax.Array
    count: jax.Array
    split: bool = flax.struct.field(pytree_node=False)


def make_steps(pool: Pool, table: PageTable, labels: jax.Array | None = None) -> Steps:
    """Returns the steps that read a page table.

    Args:
      labels: [C] int32 labels of the pages; 0 for all by default.
    """
    G, C = table.pages.shape
    labels = jnp.zeros(C, jnp.int32) if labels is None else labels
    mesh, rows_of_page = pool.backend.mesh, pool.k[0].shape[2]
    cut = functools.partial(
        _cut_steps,
        together=min(max(1, _WIDTH // rows_of_page), C),
        page_size=pool.page_size,
        side_by_side=pool.page_size // rows_of_page,
    )
    if mesh is None or G % mesh.shape["data"]:
        return Steps(*cut(table.pages, table.fills, labels), split=False)
    rows, everywhere = logical_to_spec(("rows",)), logical_to_spec(())
    on_each = jax.shard_map(
        cut, mesh=mesh, in_specs=(rows, rows, everywhere), out_specs=rows, check_vma=False
    )
    return Steps(*on_each(table.pages, table.fills, labels), split=True)


def _cut_steps(
    pages: jax.Array,
    fills: jax.Array,
    page_labels: jax.Array,
    *,
    together: int,
    page_size: int,
    side_by_side: int,
) -> tuple[jax.Array, ...]:
    """Cuts page tables [G, C] with labels [C] into the arrays of `Steps`.

    Raises:
      UserError: There are more page numbers than the scalar memory holds.
    """
    G, C = pages.shape
    missing = -C % together
    if (numbers := G * (C + missing) * (together + 1) // together) > _MOST_NUMBERS:
        raise UserError(
            f"pallas holds at most {_MOST_NUMBERS} page numbers, not {numbers}; take fewer "
            "engine.decode_rows, a shorter engine.context or a larger engine.page_size",
            field="engine.attention",
        )
    pages, fills = (jnp.pad(x, ((0, 0), (0, missing))) for x in (pages, fills))
    page_labels = jnp.pad(page_labels, (0, missing))
    C += missing
    filled = jnp.arange(page_size) < fills[..., None]  # [G, C, page_size]
    labels = jnp.where(filled, page_labels[:, None], _UNUSED)
    labels = labels.reshape(G, C // together, -1, side_by_side).swapaxes(2, 3)
    ends = jnp.max(jnp.where(fills > 0, jnp.arange(1, C + 1), 0), axis=1)
    counts = jnp.maximum(1, -(-ends // together))  # [G]
    last = jnp.cumsum(counts)
    step = jnp.arange(G * (C // together), dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(last, step, side="right"), G - 1).astype(jnp.int32)
    chunk = jnp.minimum(step - (last - counts)[group], C // together - 1)
    return (
        group,
        pages.reshape(G, -1, together)[group, chunk].reshape(-1),
        labels[group, chunk],
        last[-1:].astype(jnp.int32),
    )


def _kernel(groups, pages, q, labels, *refs, scale: float, together: int, labelled: bool):
    """Runs one step.

    Args:
      groups, pages: As in `Steps`.
      q: [K, M, W] queries, W numbers in a row; M counts the F queries of each.
      labels: [F, S] labels of the positions, S rows.
      refs: The queries' labels [M, 1], if `labelled`; `together` pages of k and as many of v
        [K, rows of a page, W]; and the part: weighted [K, M, W], maximum and total [K, M, 1].
    """
    from jax.experimental import pallas as pl

    del pages
    readers, refs = (refs[0], refs[1:]) if labelled else (None, refs)
    k_pages, v_pages, refs = refs[:together], refs[together : 2 * together], refs[2 * together :]
    weighted, maximum, total = refs
    step = pl.program_id(1)

    @pl.when((step == 0) | (groups[step] != groups[jnp.maximum(step, 1) - 1]))
    def _():
        weighted[...] = jnp.zeros_like(weighted)
        maximum[...] = jnp.full_like(maximum, MASKED)
        total[...] = jnp.zeros_like(total)

    F, M = labels.shape[0], q.shape[1]
    keys = labels[0:1]
    if F > 1:  # each of a query's F queries reads one token of a row
        column = jax.lax.broadcasted_iota(jnp.int32, (M, 1), 0) % F
        for f in range(1, F):
            keys = jnp.where(column == f, labels[f : f + 1], keys)
    seen = keys >= 0 if readers is None else keys == readers[...]  # [1 or M, S]
    for head in range(q.shape[0]):
        k = jnp.concatenate([page[head] for page in k_pages])
        v = jnp.concatenate([page[head] for page in v_pages])
        scores = jax.lax.dot_general(
            q[head], k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        scores = jnp.where(seen, scores * scale, MASKED)
        before = maximum[head]
        largest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - largest), 0.0)
        kept = jnp.exp(before - largest)
        weighted[head] = weighted[head] * kept + jax.lax.dot_general(
            weights.astype(v.dtype),
            v,
            (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        maximum[head] = largest
        total[head] = total[head] * kept + weights.sum(axis=1, keepdims=True)


def _attend(steps: Steps, readers: jax.Array | None, q, k, v, interpret: bool) -> Part:
    """`attend_pages` on one device."""
    F, H = steps.labels.shape[1], q.shape[-1]
    # Each query once for each token of a row, with zeros for the others.
    q = (q[..., None, None, :] * jnp.eye(F, dtype=q.dtype)[:, :, None]).reshape(
        *q.shape[:2], -1, F * H
    )
    readers = None if readers is None else jnp.repeat(readers, F, axis=1)
    part = _run(steps, readers, q, k, v, H**-0.5, interpret)
    weighted, maximum, total = (x.reshape(*x.shape[:2], -1, F, x.shape[-1]) for x in part)
    return functools.reduce(
        merge,
        [
            Part(weighted[..., f, f * H : (f + 1) * H], maximum[..., f, 0], total[..., f, 0])
            for f in range(F)
        ],
    )


def _run(steps: Steps, readers, q, k, v, scale: float, interpret: bool) -> list[jax.Array]:
    """Calls the kernel: the part of queries [K, G, M, W]; maximum and total are [K, G, M, 1]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (K, G, M, W), rows_of_page = q.shape, k.shape[2]
    together = steps.pages.shape[0] // steps.groups.shape[0]
    size = min(M, _MOST_QUERIES)
    missing = -M % size
    q = jnp.pad(q, ((0, 0), (0, 0), (0, missing), (0, 0)))

    def query_block(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((K, None, size, width), lambda m, s, groups, _: (0, groups[s], m, 0))

    def page_block(i: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (K, None, rows_of_page, W), lambda m, s, _, pages: (0, pages[s * together + i], 0, 0)
        )

    inputs = [q, steps.labels]
    in_specs = [
        query_block(W),
        pl.BlockSpec((None, *steps.labels.shape[1:]), lambda m, s, *_: (s, 0, 0)),
    ]
    if readers is not None:
        inputs.append(jnp.pad(readers, ((0, 0), (0, missing)))[..., None])
        in_specs.append(pl.BlockSpec((None, size, 1), lambda m, s, groups, _: (groups[s], m, 0)))
    pages = [page_block(i) for i in range(together)]
    widths = (W, 1, 1)
    kernel = pl.pallas_call(
        functools.partial(_kernel, scale=scale, together=together, labelled=readers is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=((M + missing) // size, steps.count[0]),
            in_specs=[*in_specs, *pages, *pages],
            out_specs=[query_block(width) for width in widths],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((K, G, M + missing, width), jnp.float32) for width in widths
        ],
        interpret=interpret,
        name="paged_attention",
    )
    moved = sum(x.size * x.dtype.itemsize for x in inputs) + 4 * K * G * (M + missing) * sum(widths)
    page = K * rows_of_page * W * k.dtype.itemsize
    with declared_bytes(moved, 2 * page * steps.pages.shape[0] * ((M + missing) // size)):
        part = kernel(steps.groups, steps.pages, *inputs, *[k] * together, *[v] * together)
    return [x[:, :, :M] for x in part]


def attend_pages(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    steps: Steps,
    backend: Backend,
    readers: jax.Array | None = None,
) -> Part:
    """Returns the part of queries [K, G, M, H] over pages of one layer's k and v, as in `Pool`.

    Args:
      steps: The pages of the G sequences.
      readers: [G, M] int32 labels of the queries: a query reads the positions with its label. By
        default it reads all.
    """
    attend = functools.partial(_attend, interpret=backend.interpret)
    if backend.mesh is None:
        return attend(steps, readers, q, k, v)
    data = backend.mesh.shape["data"]
    groups = "rows" if steps.split else None
    queries = "rows" if not steps.split and q.shape[2] % data == 0 else None
    by_query, pool = logical_to_spec(("kv_heads", groups, queries)), logical_to_spec(("kv_heads",))
    labels = None if readers is None else logical_to_spec((groups, queries))
    return jax.shard_map(
        attend,
        mesh=backend.mesh,
        in_specs=(logical_to_spec((groups,)), labels, by_query, pool, pool),
        out_specs=by_query,
        check_vma=False,
    )(steps, readers, q, k, v)


def own_pages(pool: Pool, table: PageTable) -> Reader:
    """Returns attention of each sequence to its own pages."""
    steps = make_steps(pool, table)
    return lambda l, q: attend_pages(q, *_layer(pool, l), steps, pool.backend)


def shared_pages(pool: Pool, context: Context, sequence_of: jax.Array) -> Reader:
    """Returns attention of queries [K, 1, M, H] to shared prefixes, each to that of its sequence.

    Args:
      sequence_of: [M] int32, the sequence of each query.
    """
    steps = make_steps(pool, context.shared, context.shared_ids)
    readers = context.prefix_ids[sequence_of][None]
    return lambda l, q: attend_pages(q, *_layer(pool, l), steps, pool.backend, readers)


def _layer(pool: Pool, l: int) -> tuple[jax.Array, jax.Array]:
    """The keys and values of a layer; `EngineConfig` refuses pages in 8 bits for this kernel."""
    k, v = pool.k[l], pool.v[l]
    assert not isinstance(k, EightBits)
    assert not isinstance(v, EightBits)
    return k, v
