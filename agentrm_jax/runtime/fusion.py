"""What XLA's CPU compiler should not fuse."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

Value = TypeVar("Value")


def computed_once(value: Value, number: jax.Array) -> Value:
    """A value that lies in memory, where the compiler would compute it anew for everything that
    uses it.

    Barriers are dropped before it fuses; a branch that it cannot foresee keeps both sides apart.

    Args:
      value: Arrays of floats.
      number: A float scalar that is not NaN, which the compiler does not know.
    """
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), value)
    return jax.lax.cond(number == number, lambda: value, lambda: nothing)
