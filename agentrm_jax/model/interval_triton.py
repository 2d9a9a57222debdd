"""The kernels of `model.interval_attention` for NVIDIA GPUs (Pallas, Triton).

A program of the forward pass, and of the gradient of the queries, takes a block of queries of one
head and walks over the blocks of keys that it visits; a program of the gradient of keys and values
takes a block of keys of one KV head and walks over the blocks of queries of all its heads. All
arrays are read in the layout of the model.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from agentrm_jax.core.errors import UserError
from agentrm_jax.model.interval_attention import LEAST, Blocks, attend_intervals, dot

HEAD_SIZES = (16, 32, 64, 128, 256)
"""Head sizes of the kernels: Triton computes with powers of two."""


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, visible_until: jax.Array, interpret: bool
) -> jax.Array:
    """`attend_intervals` with these kernels.

    Raises:
      UserError: The kernels do not support the size of the heads.
    """
    H = q.shape[-1]
    if H not in HEAD_SIZES:
        *others, last = map(str, HEAD_SIZES)
        raise UserError(
            field="model.head_dim",
            value=H,
            expected=f"{', '.join(others)} or {last} for triton attention",
        )
    # Blocks of queries, keys and values stay in the registers and the shared memory of a processor.
    size = 64 if H * q.dtype.itemsize <= 256 else 32 if H * q.dtype.itemsize <= 512 else 16
    return attend_intervals(q, k, v, visible_until, Triton(size, interpret), size)


@dataclasses.dataclass(frozen=True, slots=True)
class Triton:
    """The kernels for blocks of `size` tokens; `interpret` replaces them by XLA operations."""

    size: int
    interpret: bool

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, blocks: Blocks
    ) -> tuple[jax.Array, jax.Array]:
        """Implements `Kernels`."""
        (B, T, N, _), shape = q.shape, self._specs(q, k)
        return self._call(
            _forward,
            (B, N, T // self.size),
            (blocks.keys, blocks.num_keys, blocks.ends, q, k, v),
            [*shape.lists, shape.ends, shape.queries, shape.keys, shape.keys],
            [(q, shape.queries), (jax.ShapeDtypeStruct((B, N, T), jnp.float32), shape.rows)],
        )

    def backward_queries(
        self, given: tuple[jax.Array, ...], blocks: Blocks, rows: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Implements `Kernels`."""
        q, k = given[:2]
        (B, T, N, _), shape = q.shape, self._specs(q, k)
        [dq] = self._call(
            _backward_queries,
            (B, N, T // self.size),
            (blocks.keys, blocks.num_keys, blocks.ends, *given, *rows),
            [
                *shape.lists, shape.ends, shape.queries, shape.keys, shape.keys, shape.queries,
                shape.rows, shape.rows,
            ],
            [(q, shape.queries)],
        )  # fmt: skip
        return dq

    def backward_keys(
        self, given: tuple[jax.Array, ...], blocks: Blocks, rows: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Implements `Kernels`."""
        from jax.experimental import pallas as pl

        q, k, v, gradient = given
        (B, T, N, H), K, size = q.shape, k.shape[2], self.size
        lists = self._specs(q, k).lists
        # All heads of a KV head side by side.
        heads = pl.BlockSpec((None, T, None, N // K * H), lambda b, h, j: (b, 0, h, 0))
        of_rows = pl.BlockSpec((None, None, N // K * T), lambda b, h, j: (b, h, 0))
        own = pl.BlockSpec((None, size, None, H), lambda b, h, j: (b, j, h, 0))
        ends = pl.BlockSpec((None, size), lambda b, h, j: (b, j))
        dk, dv = self._call(
            functools.partial(_backward_keys, tokens=T),
            (B, K, T // size),
            (
                blocks.queries, blocks.num_queries, blocks.ends,
                *(x.reshape(B, T, K, -1) for x in (q, gradient)),
                k, v, *(x.reshape(B, K, -1) for x in rows),
            ),
            [*lists, ends, heads, heads, own, own, of_rows, of_rows],
            [(k, own), (v, own)],
        )  # fmt: skip
        return dk, dv

    def _specs(self, q: jax.Array, k: jax.Array) -> _Specs:
        from jax.experimental import pallas as pl

        (_, T, N, H), size = q.shape, self.size
        shared = N // k.shape[2]
        return _Specs(
            lists=(
                pl.BlockSpec((None, None, T // size), lambda b, h, i: (b, i, 0)),
                pl.BlockSpec((None, T // size), lambda b, h, i: (b, 0)),
            ),
            ends=pl.BlockSpec((None, T), lambda b, h, i: (b, 0)),
            queries=pl.BlockSpec((None, size, None, H), lambda b, h, i: (b, i, h, 0)),
            keys=pl.BlockSpec(
                (None, T, None, H), lambda b, h, i: (b, 0, jax.lax.div(h, shared), 0)
            ),
            rows=pl.BlockSpec((None, None, size), lambda b, h, i: (b, h, i)),
        )

    def _call(self, kernel, grid: tuple[int, ...], inputs, in_specs, outputs):
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton as plgpu

        arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs]
        call = pl.pallas_call(
            functools.partial(kernel, size=self.size),
            grid=grid,
            in_specs=in_specs,
            out_specs=[spec for _, spec in outputs],
            out_shape=arrays,
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
            interpret=self.interpret,
            name="interval_attention",
        )
        # Programs that share keys run side by side and find them in the second-level cache.
        moved = sum(x.size * x.dtype.itemsize for x in (*inputs, *arrays))
        with set_xla_metadata(bytes_fixed=str(moved), bytes_paged="0"):
            return call(*inputs)


@dataclasses.dataclass(frozen=True)
class _Specs:
    """The parts of the arrays that a program of queries reads."""

    lists: tuple
    ends: object
    queries: object
    keys: object
    rows: object


def _load(ref, *starts_and_sizes):
    """A part of an array, from a start and a size along each axis."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    return plgpu.load(ref.at[tuple(pl.ds(*each) for each in starts_and_sizes)])


def _visible(i, j, ends, size: int):
    """The mask of a block of queries and a block of keys, [size, size]."""
    queries, keys = (number * size + jnp.arange(size) for number in (i, j))
    return (queries[:, None] >= keys[None, :]) & (queries[:, None] < ends[None, :])


def _forward(*refs, size: int):
    """order [I], count [I], ends [T]; q and out [size, H]; k and v [T, H]; normalizer [size]."""
    order, count, ends, q, k, v, out, normalizer = refs
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    i, H = pl.program_id(2), q.shape[1]
    queries = q[...]

    def step(s, before):
        weighted, largest, total = before
        j = plgpu.load(order.at[s])
        keys, values = (_load(x, (j * size, size), (0, H)) for x in (k, v))
        seen = _visible(i, j, _load(ends, (j * size, size)), size)
        scores = jnp.where(seen, dot(queries, keys, (1, 1)) * H**-0.5, LEAST)
        new = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - new[:, None]), 0.0)
        keep = jnp.exp(largest - new)
        added = dot(weights.astype(values.dtype), values, (1, 0))
        return weighted * keep[:, None] + added, new, total * keep + jnp.sum(weights, axis=1)

    empty = (
        jnp.zeros((size, H), jnp.float32),
        jnp.full((size,), LEAST, jnp.float32),
        jnp.zeros((size,), jnp.float32),
    )
    weighted, largest, total = jax.lax.fori_loop(0, plgpu.load(count.at[i]), step, empty)
    total = jnp.where(total == 0.0, 1.0, total)
    out[...] = (weighted / total[:, None]).astype(out.dtype)
    normalizer[...] = largest + jnp.log(total)


def _backward_queries(*refs, size: int):
    """Blocks as of `_forward`; gradient and dq [size, H]; normalizer and common [size]."""
    order, count, ends, q, k, v, gradient, normalizer, common, dq = refs
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    i, H = pl.program_id(2), q.shape[1]
    queries, changes = q[...], gradient[...]
    subtracted, shared = normalizer[...], common[...]

    def step(s, sums):
        j = plgpu.load(order.at[s])
        keys, values = (_load(x, (j * size, size), (0, H)) for x in (k, v))
        seen = _visible(i, j, _load(ends, (j * size, size)), size)
        scores = dot(queries, keys, (1, 1)) * H**-0.5 - subtracted[:, None]
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, LEAST)), 0.0)
        by_score = weights * (dot(changes, values, (1, 1)) - shared[:, None])
        return sums + dot(by_score.astype(keys.dtype), keys, (1, 0))

    sums = jax.lax.fori_loop(0, plgpu.load(count.at[i]), step, jnp.zeros((size, H), jnp.float32))
    dq[...] = (sums * H**-0.5).astype(dq.dtype)


def _backward_keys(*refs, size: int, tokens: int):
    """order [I], count [I], ends [size]; q and gradient [T, G * H]; k, v, dk and dv [size, H];
    normalizer and common [G * T]."""
    order, count, ends, q, gradient, k, v, normalizer, common, dk, dv = refs
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    j, H = pl.program_id(2), k.shape[1]
    heads = q.shape[1] // H
    keys, values, until = k[...], v[...], ends[...]

    def step(s, sums):
        number, head = jax.lax.div(s, heads), jax.lax.rem(s, heads)
        i = plgpu.load(order.at[number])
        part = (i * size, size), (head * H, H)
        queries, changes = _load(q, *part), _load(gradient, *part)
        row = (head * tokens + i * size, size)
        subtracted, shared = _load(normalizer, row), _load(common, row)
        at, of = i * size + jnp.arange(size), j * size + jnp.arange(size)
        # Keys before queries, so that no product needs a transposed block of weights.
        seen = (at[None, :] >= of[:, None]) & (at[None, :] < until[:, None])
        scores = dot(keys, queries, (1, 1)) * H**-0.5 - subtracted[None, :]
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, LEAST)), 0.0)
        by_score = weights * (dot(values, changes, (1, 1)) - shared[None, :])
        return (
            sums[0] + dot(by_score.astype(queries.dtype), queries, (1, 0)),
            sums[1] + dot(weights.astype(changes.dtype), changes, (1, 0)),
        )

    zeros = jnp.zeros((size, H), jnp.float32)
    sums = jax.lax.fori_loop(0, plgpu.load(count.at[j]) * heads, step, (zeros, zeros))
    dk[...], dv[...] = (sums[0] * H**-0.5).astype(dk.dtype), sums[1].astype(dv.dtype)
