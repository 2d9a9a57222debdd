"""From decode rows to the slots of each group of sequences, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.rows import DecodeRows


class SlotMap(NamedTuple):
    """The functions that move queries from rows to slots, and parts from slots to rows.

    Attributes:
      to_slots: [X, R, ...] to [X, G * n, ...] of each group; a slot without a row holds the values
        of another row.
      to_rows: [X, G * n, ...] of each group to [X, R, ...].
    """

    to_slots: Callable[[jax.Array], list[jax.Array]]
    to_rows: Callable[[Sequence[jax.Array]], jax.Array]


def slot_map(rows: DecodeRows, branches: Sequence[int]) -> SlotMap:
    """Returns the map between rows and slots.

    Args:
      branches: For each group, the slots of a sequence.
    """
    if rows.slots is None:
        return SlotMap(lambda x: [x], lambda groups: groups[0])
    sizes = [n * c.prefix_ids.shape[0] for n, c in zip(branches, rows.contexts, strict=True)]
    slots = jnp.asarray(rows.slots)
    D, R = slots.shape[0], slots.size
    ends = np.cumsum(sizes) // D
    row_at = jax.vmap(
        lambda own: jnp.zeros(ends[-1], jnp.int32).at[own].set(jnp.arange(R // D), mode="drop")
    )(slots)

    def gather(x: jax.Array, indices: jax.Array) -> jax.Array:
        """The values of [X, D, n, ...] at indices [D, m], on each device."""
        indices = indices.reshape(1, D, -1, *(1,) * (x.ndim - 3))
        return jnp.take_along_axis(x, indices, axis=2, mode="clip")

    def to_slots(x: jax.Array) -> list[jax.Array]:
        x = gather(x.reshape(x.shape[0], D, R // D, *x.shape[2:]), row_at)
        return [
            group.reshape(x.shape[0], -1, *x.shape[3:]) for group in jnp.split(x, ends[:-1], axis=2)
        ]

    def to_rows(groups: Sequence[jax.Array]) -> jax.Array:
        joined = [x.reshape(x.shape[0], D, x.shape[1] // D, *x.shape[2:]) for x in groups]
        x = gather(jnp.concatenate(joined, axis=2), slots)
        return x.reshape(x.shape[0], R, *x.shape[3:])

    return SlotMap(to_slots, to_rows)
