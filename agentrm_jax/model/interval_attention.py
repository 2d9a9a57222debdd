"""Causal attention of packed rows by kernels of GPUs and TPUs: of sequences and of trees.

Query j attends to key i if i <= j < end(i): the end of the key's segment or of its subtree. Rows
are cut into blocks. Which pairs of blocks hold a visible pair is known only with the data; the
kernels visit these and no others, by lists of block numbers. They keep a running softmax in
float32, and the backward pass computes the scores again (FlashAttention: Dao et al. 2022), so that
no array of queries by keys is ever in memory.

Axis letters: B batch, T tokens, N heads, K KV heads, G query heads of each, H head width; I blocks
of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LEAST = -1e30
"""Score of a masked pair; unlike infinity, differences of it are numbers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The pairs of blocks that hold a visible pair.

    Attributes:
      ends: [B, T] int32, for each key the first later position that does not attend to it; 0 for
        padding at the end of a row.
      keys: [B, I, I] int32, for each block of queries the blocks of keys that it visits; the last
        one is repeated.
      num_keys: [B, I] int32, the number of these blocks.
      queries: [B, I, I] int32, for each block of keys the blocks of queries that visit it.
      num_queries: [B, I] int32.
    """

    ends: jax.Array
    keys: jax.Array
    num_keys: jax.Array
    queries: jax.Array
    num_queries: jax.Array


class Kernels(Protocol):
    """The three kernels of a platform. T is a multiple of the size of a block.

    Shapes: q [B, T, N, H]; k and v [B, T, K, H]; log-sum-exps and sums [B, N, T] float32.
    """

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, blocks: Blocks
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the output, like q, and the log-sum-exp of each query's scores."""
        ...

    def backward_queries(
        self, given: tuple[jax.Array, ...], blocks: Blocks, rows: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Returns the gradient of q.

        Args:
          given: q, k, v and the gradient of the output.
          blocks: The pairs of blocks.
          rows: The log-sum-exps, and the sums over H of output times gradient.
        """
        ...

    def backward_keys(
        self, given: tuple[jax.Array, ...], blocks: Blocks, rows: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the gradients of k and v; arguments as of `backward_queries`."""
        ...


def attend_intervals(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    visible_until: Int[Array, "batch length"],
    kernels: Kernels,
    size: int,
) -> Float[Array, "batch length heads head_dim"]:
    """Returns the softmax attention of each query to the visible keys at or before it.

    Args:
      q: [B, T, N, H] queries.
      k: [B, T, K, H] keys.
      v: [B, T, K, H] values.
      visible_until: [B, T] int32, for each key the first later position that does not attend to it:
        the end of its segment or of its subtree.
      kernels: The kernels; compared by value, since they are a static argument.
      size: Tokens of a block.

    Returns:
      [B, T, N, H]; zeros for queries without any key.
    """
    T = q.shape[1]

    def filled(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, -T % size), *((0, 0) for _ in x.shape[2:])))

    blocks = visited_blocks(filled(visible_until.astype(jnp.int32)), size)
    out = _attend(kernels, *map(filled, (q, k, v)), blocks)
    assert isinstance(out, jax.Array)
    return out[:, :T]


def visited_blocks(ends: Int[Array, "batch length"], size: int) -> Blocks:
    """Returns the pairs of blocks that hold a visible pair.

    Args:
      ends: [B, T] int32, for each key the first later position that does not attend to it.
      size: Tokens of a block; divides T.
    """
    B, T = ends.shape
    number = jnp.arange(T // size)
    latest = ends.reshape(B, T // size, size).max(axis=2)
    needed = (number[:, None] >= number) & (number[:, None] * size < latest[:, None])

    def listed(needed: jax.Array) -> tuple[jax.Array, jax.Array]:
        count = needed.sum(axis=2).astype(jnp.int32)
        order = jnp.argsort(~needed, axis=2, stable=True).astype(jnp.int32)
        place = jnp.minimum(number, jnp.maximum(count[..., None] - 1, 0))
        return jnp.take_along_axis(order, place, axis=2), count

    return Blocks(ends, *listed(needed), *listed(needed.swapaxes(1, 2)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    kernels: Kernels, q: jax.Array, k: jax.Array, v: jax.Array, blocks: Blocks
) -> jax.Array:
    return kernels.forward(q, k, v, blocks)[0]


def _attend_and_keep(
    kernels: Kernels, q: jax.Array, k: jax.Array, v: jax.Array, blocks: Blocks
) -> tuple[jax.Array, tuple]:
    out, normalizer = kernels.forward(q, k, v, blocks)
    return out, (q, k, v, blocks, out, normalizer)


def _backward(kernels: Kernels, kept: tuple, gradient: jax.Array):
    q, k, v, blocks, out, normalizer = kept
    # The gradient of a change of all weights of a query, which softmax subtracts from each.
    common = jnp.einsum("btnh,btnh->bnt", gradient, out, preferred_element_type=jnp.float32)
    given, rows = (q, k, v, gradient), (normalizer, common)
    dq = kernels.backward_queries(given, blocks, rows)
    dk, dv = kernels.backward_keys(given, blocks, rows)
    return dq, dk, dv, None


_attend.defvjp(_attend_and_keep, _backward)


def dot(x: jax.Array, y: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """Returns the product of two blocks in float32, as kernels compute it.

    Args:
      x: [..] and y: the blocks, of two axes.
      contracted: The axis of each that is summed over.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    first, second = contracted
    return jax.lax.dot_general(
        x,
        y,
        (((first,), (second,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
