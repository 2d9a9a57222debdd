"""Matrices stored in panels, for products with few positions on CPUs with one thread.

The matrix product of a CPU first copies a matrix into panels of some columns. For few positions, as
in decoding, this takes longer than the product itself, which is limited by memory. Here the matrix
is stored in panels, and each panel is multiplied without a copy. With several threads nothing is
gained, since all of them make the copies.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.model.parameters import Params
from agentrm_jax.runtime.fusion import materialize

WIDTH = 64
"""Columns of a panel: wider panels are copied again, narrower ones are slower."""
MOST = 24
"""Largest number of positions for which panels are faster."""
MATRICES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""The matrices of a layer that are stored in panels, and the number of axes of their input."""


@flax.struct.dataclass
class Panels:
    """A matrix [*out, in], stored in panels.

    Attributes:
      values: [P, in, WIDTH]; the last panel is padded with zeros.
      out: Sizes of the axes `out`.
    """

    values: jax.Array
    out: tuple[int, ...] = flax.struct.field(pytree_node=False)


def in_panels(matrix: jax.Array, shared: int = 1) -> Panels:
    """Returns a matrix [*out, *in] in panels, copied on the host.

    Args:
      matrix: The matrix.
      shared: Number of axes of `in`.
    """
    out, width = matrix.shape[:-shared], math.prod(matrix.shape[-shared:])
    rows = np.asarray(matrix).reshape(-1, width)
    rows = np.pad(rows, ((0, -len(rows) % WIDTH), (0, 0)))
    values = rows.reshape(-1, WIDTH, width).swapaxes(1, 2)
    return Panels(jnp.asarray(np.ascontiguousarray(values)), out)


def multiply(panels: Panels, x: jax.Array) -> jax.Array:
    """Returns the product [B, T, *out] of x [B, T, in] with the matrix."""
    B, T, D = x.shape
    x = materialize(x, panels.values[0, 0, 0])  # otherwise recomputed for every panel
    for_each = jnp.broadcast_to(x.reshape(-1, D), (panels.values.shape[0], B * T, D))
    found = jax.lax.dot_general(for_each, panels.values, (((2,), (1,)), ((0,), (0,))))
    found = found.swapaxes(0, 1).reshape(B * T, -1)[:, : math.prod(panels.out)]
    return found.reshape(B, T, *panels.out)


def for_few_positions(params: Params) -> Params:
    """Returns unstacked parameters with their matrices in panels.

    Tied embeddings are kept, and a head in panels is added to them.
    """
    layers = [
        {**weights, **{name: in_panels(weights[name], n) for name, n in MATRICES.items()}}
        for weights in params["layers"]
    ]
    head = in_panels(params.get("lm_head", params["embed"]))
    return {**params, "layers": tuple(layers), "lm_head": head}
