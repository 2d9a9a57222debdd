"""The kernels of `model.interval_attention` for TPUs (Pallas, Mosaic).

The last axis of the grid walks over the blocks that a block visits; the sums are kept in the vector
memory between its steps. The numbers of the blocks are known before a step begins, so that the next
block is copied while one is computed; steps after the last visited block repeat it and copy
nothing. Scores are [keys, queries]: what belongs to a query is then a row of a register.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from agentrm_jax.model.interval_attention import LEAST, Blocks, attend_intervals, dot


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, visible_until: jax.Array, interpret: bool
) -> jax.Array:
    """`attend_intervals` with these kernels."""
    length = q.shape[1] + -q.shape[1] % 128
    size = next(size for size in (512, 256, 128) if length % size == 0)
    return attend_intervals(q, k, v, visible_until, Mosaic(size, interpret), size)


@dataclasses.dataclass(frozen=True, slots=True)
class Mosaic:
    """The kernels for blocks of `size` tokens; `interpret` replaces them by XLA operations."""

    size: int
    interpret: bool

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, blocks: Blocks
    ) -> tuple[jax.Array, jax.Array]:
        """Implements `Kernels`."""
        (B, T, N, H), specs = q.shape, self._specs(q, k)
        row = jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32)
        out, normalizer = self._call(
            _forward,
            (B, N, T // self.size, T // self.size),
            (blocks.keys, blocks.num_keys),
            (blocks.ends[..., None], *map(_by_head, (q, k, v))),
            (specs.ends, specs.queries, specs.keys, specs.keys),
            ((_by_head(q), specs.queries), (row, specs.rows)),
            [(H, self.size), (1, self.size), (1, self.size)],
        )
        return _by_head(out), normalizer[:, :, 0]

    def backward_queries(
        self, given: tuple[jax.Array, ...], blocks: Blocks, rows: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Implements `Kernels`."""
        q, k = given[:2]
        (B, T, N, H), specs = q.shape, self._specs(q, k)
        arrays = tuple(map(_by_head, given))
        [dq] = self._call(
            _backward_queries,
            (B, N, T // self.size, T // self.size),
            (blocks.keys, blocks.num_keys),
            (blocks.ends[..., None], *arrays, *(x[:, :, None] for x in rows)),
            (specs.ends, specs.queries, specs.keys, specs.keys, specs.queries, *[specs.rows] * 2),
            ((arrays[0], specs.queries),),
            [(H, self.size)],
        )
        return _by_head(dq)

    def backward_keys(
        self, given: tuple[jax.Array, ...], blocks: Blocks, rows: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Implements `Kernels`."""
        from jax.experimental import pallas as pl

        q, k = given[:2]
        (B, T, N, H), K, size = q.shape, k.shape[2], self.size
        num, shared = T // size, N // K
        arrays = tuple(map(_by_head, given))

        def visiting(b, h, j, s, order, count):
            """The head and the block of queries of a step."""
            head, step = jax.lax.div(s, num), jax.lax.rem(s, num)
            return h * shared + head, order[(b * num + j) * num + step]

        def of_queries(*at):
            head, block = visiting(*at)
            return at[0], head, block, 0

        def of_rows(*at):
            head, block = visiting(*at)
            return at[0], head, 0, block

        queries = pl.BlockSpec((None, None, size, H), of_queries)
        row = pl.BlockSpec((None, None, 1, size), of_rows)
        own = pl.BlockSpec((None, None, size, H), lambda b, h, j, s, *_: (b, h, j, 0))
        ends = pl.BlockSpec((None, size, 1), lambda b, h, j, s, *_: (b, j, 0))
        dk, dv = self._call(
            _backward_keys,
            (B, K, num, shared * num),
            (blocks.queries, blocks.num_queries),
            (blocks.ends[..., None], *arrays, *(x[:, :, None] for x in rows)),
            (ends, queries, own, own, queries, row, row),
            ((arrays[1], own), (arrays[2], own)),
            [(size, H), (size, H)],
        )
        return _by_head(dk), _by_head(dv)

    def _specs(self, q: jax.Array, k: jax.Array) -> _Specs:
        from jax.experimental import pallas as pl

        (_, T, N, H), size = q.shape, self.size
        shared, num = N // k.shape[2], T // size

        def visited(b, i, s, order):
            return order[(b * num + i) * num + s]

        return _Specs(
            ends=pl.BlockSpec(
                (None, size, 1), lambda b, h, i, s, order, _: (b, visited(b, i, s, order), 0)
            ),
            queries=pl.BlockSpec((None, None, size, H), lambda b, h, i, s, *_: (b, h, i, 0)),
            keys=pl.BlockSpec(
                (None, None, size, H),
                lambda b, h, i, s, order, _: (
                    b,
                    jax.lax.div(h, shared),
                    visited(b, i, s, order),
                    0,
                ),
            ),
            rows=pl.BlockSpec((None, None, 1, size), lambda b, h, i, s, *_: (b, h, 0, i)),
        )

    def _call(self, kernel, grid, lists, inputs, in_specs, outputs, scratch):
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs]
        B, heads, num, steps = grid
        q = inputs[1]
        pairs = B * heads * (num + 1) * steps // 2  # of blocks, if no pair before the diagonal
        block = self.size * q.shape[-1] * q.dtype.itemsize  # may be left out
        moved = sum(x.size * x.dtype.itemsize for x in (*inputs, *arrays))
        return pl.pallas_call(
            functools.partial(kernel, size=self.size, num=num),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=grid,
                in_specs=list(in_specs),
                out_specs=[spec for _, spec in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=arrays,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=pairs * 4 * self.size**2 * q.shape[-1],
                bytes_accessed=moved + 2 * pairs * block,
                transcendentals=pairs * self.size**2,
            ),
            interpret=self.interpret,
            name="interval_attention",
        )(*(x.reshape(-1) for x in lists), *inputs)


@dataclasses.dataclass(frozen=True)
class _Specs:
    """The parts of the arrays that a step of a block of queries reads."""

    ends: object
    queries: object
    keys: object
    rows: object


def _by_head(x: jax.Array) -> jax.Array:
    """Tokens and heads exchanged: [B, T, N, H] to [B, N, T, H] and back."""
    return x.swapaxes(1, 2)


def _visible(i, j, ends, size: int):
    """The mask of a block of keys j, with their ends [size, 1], and a block of queries i."""
    keys = j * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    queries = i * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return (queries >= keys) & (queries < ends)


def _forward(*refs, size: int, num: int):
    """ends [size, 1]; q, k, v and out [size, H]; normalizer, largest and total [1, size];
    weighted [H, size]."""
    order, count, ends, q, k, v, out, normalizer, weighted, largest, total = refs
    from jax.experimental import pallas as pl

    i, s = pl.program_id(2), pl.program_id(3)
    row = pl.program_id(0) * num + i

    @pl.when(s == 0)
    def _():
        weighted[...] = jnp.zeros_like(weighted)
        largest[...] = jnp.full_like(largest, LEAST)
        total[...] = jnp.zeros_like(total)

    @pl.when(s < count[row])
    def _():
        values = v[...]
        seen = _visible(i, order[row * num + s], ends[...], size)
        scores = jnp.where(seen, dot(k[...], q[...], (1, 1)) * q.shape[1] ** -0.5, LEAST)
        new = jnp.maximum(largest[...], jnp.max(scores, axis=0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - new), 0.0)
        keep = jnp.exp(largest[...] - new)
        added = dot(values, weights.astype(values.dtype), (0, 0))
        weighted[...] = weighted[...] * keep + added
        total[...] = total[...] * keep + jnp.sum(weights, axis=0, keepdims=True)
        largest[...] = new

    @pl.when(s == num - 1)
    def _():
        sums = jnp.where(total[...] == 0.0, 1.0, total[...])
        out[...] = (weighted[...] / sums).T.astype(out.dtype)
        normalizer[...] = largest[...] + jnp.log(sums)


def _gradients(seen, keys, queries, values, changes, normalizer, common):
    """The weights and the gradients of the scores, [keys, queries] float32."""
    scores = dot(keys, queries, (1, 1)) * queries.shape[1] ** -0.5 - normalizer
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, LEAST)), 0.0)
    return weights, weights * (dot(values, changes, (1, 1)) - common)


def _backward_queries(*refs, size: int, num: int):
    """Blocks as of `_forward`; gradient and dq [size, H]; common [1, size]; sums [H, size]."""
    order, count, ends, q, k, v, gradient, normalizer, common, dq, sums = refs
    from jax.experimental import pallas as pl

    i, s = pl.program_id(2), pl.program_id(3)
    row = pl.program_id(0) * num + i

    @pl.when(s == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    @pl.when(s < count[row])
    def _():
        keys = k[...]
        seen = _visible(i, order[row * num + s], ends[...], size)
        _, by_score = _gradients(
            seen, keys, q[...], v[...], gradient[...], normalizer[...], common[...]
        )
        sums[...] += dot(keys, by_score.astype(keys.dtype), (0, 0))

    @pl.when(s == num - 1)
    def _():
        dq[...] = (sums[...] * q.shape[1] ** -0.5).T.astype(dq.dtype)


def _backward_keys(*refs, size: int, num: int):
    """Blocks as of `_backward_queries`; dk, dv, by_key and by_value [size, H]."""
    order, count, ends, q, k, v, gradient, normalizer, common, dk, dv, by_key, by_value = refs
    from jax.experimental import pallas as pl

    j, s = pl.program_id(2), pl.program_id(3)
    row = pl.program_id(0) * num + j

    @pl.when(s == 0)
    def _():
        by_key[...] = jnp.zeros_like(by_key)
        by_value[...] = jnp.zeros_like(by_value)

    step = jax.lax.rem(s, num)

    @pl.when(step < count[row])
    def _():
        queries, changes = q[...], gradient[...]
        seen = _visible(order[row * num + step], j, ends[...], size)
        weights, by_score = _gradients(
            seen, k[...], queries, v[...], changes, normalizer[...], common[...]
        )
        by_key[...] += dot(by_score.astype(queries.dtype), queries, (1, 0))
        by_value[...] += dot(weights.astype(changes.dtype), changes, (1, 0))

    @pl.when(s == pl.num_programs(3) - 1)
    def _():
        dk[...] = (by_key[...] * q.shape[1] ** -0.5).astype(dk.dtype)
        dv[...] = by_value[...].astype(dv.dtype)
