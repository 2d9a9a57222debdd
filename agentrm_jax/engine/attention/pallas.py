"""Attention over pages by a TPU kernel that finds them by their numbers.

It gives the same part as `attention.attend_chunks` over a page table, but copies nothing out of the
pool: what is to be read is laid out as a list of steps, each of which brings some pages of one
conversation, for all of its queries and KV heads, and adds them to the conversation's part (a
softmax that goes on from step to step, in float32). Conversations take as many steps as they have
pages; the list's end is known at run time only.

Rows of a page are 128 numbers wide. Where a head is narrower, F = 128 / H slots stand side by side
in a row, and each query is F queries: one for each place in a row, with zeros at the others. Their
parts are merged.

Shapes as in `attention`: K KV heads, G conversations, M queries of each that share the keys.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention.parts import MASKED, Part, Reader, merge
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool
from agentrm_jax.model.attention import Backend
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.sharding import logical_to_spec

_LANES = 128  # width of a register; rows that a step reads, about
_MOST_QUERIES = 128  # of a conversation at once; with more, its pages are read again
_MOST_NUMBERS = 240_000  # of pages and steps: they lie in the scalar memory, of 1 MiB
_NOBODY = -2  # label of a slot without a token; no query reads it


def check_shapes(config: LlamaConfig, page_size: int) -> None:
    """Refuses models and pages that the kernel cannot read.

    Raises:
      UserError: It cannot.
    """
    H = config.head_dim
    if H % _LANES and H != _LANES // 2:
        raise UserError(
            f"must be xla because pallas needs heads of 64 or multiples of 128, not {H}",
            field="engine.attention",
        )
    least = 8 * _LANES // min(H, _LANES)
    if page_size % least:
        raise UserError(
            f"must be a multiple of {least} for heads of {H} with engine.attention: pallas",
            field="engine.page_size",
            value=page_size,
        )


@flax.struct.dataclass
class Steps:
    """What the kernel reads, step by step: S steps at most, of P pages each.

    Attributes:
      groups: [S] int32, the conversation of each step; those of one stand together.
      pages: [S * P] int32 page numbers.
      labels: [S, F, P * page_size / F] int32: queries read the slots with their label.
      count: [1] int32, how many steps there are. Each conversation has at least one.
      split: Whether all this is made for each device's share of the conversations.
    """

    groups: jax.Array
    pages: jax.Array
    labels: jax.Array
    count: jax.Array
    split: bool = flax.struct.field(pytree_node=False)


def make_steps(pool: Pool, table: PageTable, owners: jax.Array | None = None) -> Steps:
    """The steps that read a page table.

    Args:
      owners: [C] int32 labels of the pages; 0 for all by default.
    """
    G, C = table.pages.shape
    labels = jnp.zeros(C, jnp.int32) if owners is None else owners
    mesh, rows_of_page = pool.backend.mesh, pool.k[0].shape[2]
    listed = functools.partial(
        _list_steps,
        together=min(max(1, _LANES // rows_of_page), C),
        page_size=pool.page_size,
        side_by_side=pool.page_size // rows_of_page,
    )
    if mesh is None or G % mesh.shape["data"]:
        return Steps(*listed(table.pages, table.fills, labels), split=False)
    rows, everywhere = logical_to_spec(("rows",)), logical_to_spec(())
    on_each = jax.shard_map(
        listed, mesh=mesh, in_specs=(rows, rows, everywhere), out_specs=rows, check_vma=False
    )
    return Steps(*on_each(table.pages, table.fills, labels), split=True)


def _list_steps(
    pages: jax.Array,
    fills: jax.Array,
    owners: jax.Array,
    *,
    together: int,
    page_size: int,
    side_by_side: int,
) -> tuple[jax.Array, ...]:
    """Page tables [G, C] and labels [C] to the arrays of `Steps`.

    Raises:
      UserError: There are too many.
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
    owners = jnp.pad(owners, (0, missing))
    C += missing
    filled = jnp.arange(page_size) < fills[..., None]  # [G, C, page_size]
    labels = jnp.where(filled, owners[:, None], _NOBODY)
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
    """One step.

    Args:
      groups, pages: Of all steps.
      q: [K, M, W] queries, W numbers in a row; M counts those of all places in a row.
      labels: [F, S] of the slots, S rows.
      refs: The queries' labels [M, 1], if there are any; `together` pages of k and as many of v
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
    slots = labels[0:1]
    if F > 1:  # queries of a place in the row see the slots there
        place = jax.lax.broadcasted_iota(jnp.int32, (M, 1), 0) % F
        for f in range(1, F):
            slots = jnp.where(place == f, labels[f : f + 1], slots)
    seen = slots >= 0 if readers is None else slots == readers[...]  # [1 or M, S]
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
    # Each query once for each place in a row, with zeros at the others.
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
    """The kernel: the part of queries [K, G, M, W], its last two as [K, G, M, 1]."""
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
    part = pl.pallas_call(
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
    )(steps.groups, steps.pages, *inputs, *[k] * together, *[v] * together)
    return [x[:, :, :M] for x in part]


def attend_pages(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    steps: Steps,
    backend: Backend,
    readers: jax.Array | None = None,
) -> Part:
    """Attention of queries [K, G, M, H] over pages of one layer's k and v, as in `Pool`.

    Args:
      steps: Which pages the G conversations have.
      readers: [G, M] int32: a query reads the slots with its label; all by default.
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


def read_own(pool: Pool, table: PageTable) -> Reader:
    """Attention of each conversation to its own pages."""
    steps = make_steps(pool, table)
    return lambda l, q: attend_pages(q, pool.k[l], pool.v[l], steps, pool.backend)


def read_instructions(pool: Pool, context: Context, rows_of: jax.Array) -> Reader:
    """Attention of all queries [K, 1, M, H] together to the instructions, each to its own.

    Args:
      rows_of: [M] int32, the conversation of each query.
    """
    steps = make_steps(pool, context.instructions, context.owners)
    readers = context.begins_with[rows_of][None]
    return lambda l, q: attend_pages(q, pool.k[l], pool.v[l], steps, pool.backend, readers)
