"""Keeps XLA's CPU compiler from fusing the computation of a value into each of its uses."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

Value = TypeVar("Value")


def materialize(value: Value, opaque_scalar: jax.Array) -> Value:
    """Returns the value, computed once and stored in memory.

    XLA fuses a cheap computation into everything that uses its result, and so repeats it.
    `jax.lax.optimization_barrier` does not help, since the CPU compiler removes barriers before it
    fuses. The result of a conditional is never fused: the condition here is always true, but the
    compiler cannot know this, because it depends on the opaque scalar.

    Args:
      value: Arrays of floats.
      opaque_scalar: A float scalar that is never NaN and that is no constant of the program.

    Returns:
      The same values.
    """
    never = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), value)
    return jax.lax.cond(opaque_scalar == opaque_scalar, lambda: value, lambda: never)
