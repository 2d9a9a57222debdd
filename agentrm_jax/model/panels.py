"""Matrices in panels, for products with few positions on CPUs with one thread.

A CPU's product copies a matrix into panels of some columns before it multiplies. With few
positions, as in decoding, this costs more than the product itself, which otherwise waits for
memory. Here the matrix lies in panels from the beginning, and each is multiplied where it lies.
By one thread: where there are more, all of them make the copies, and nothing is gained.
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
"""Columns of a panel: wider ones are copied again, narrower ones are slower."""
MOST = 24
"""Positions up to which panels are faster."""
MATRICES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""Those of a layer that lie in panels, and how many axes their input is."""


@flax.struct.dataclass
class Panels:
    """A matrix [*out, in].

    Attributes:
      values: [P, in, WIDTH]; the last columns are zero where nothing is left.
      out: Axes `out`.
    """

    values: jax.Array
    out: tuple[int, ...] = flax.struct.field(pytree_node=False)


def in_panels(matrix: jax.Array, shared: int = 1) -> Panels:
    """A matrix [*out, *in], copied on the host; `in` is its last `shared` axes."""
    out, width = matrix.shape[:-shared], math.prod(matrix.shape[-shared:])
    rows = np.asarray(matrix).reshape(-1, width)
    rows = np.pad(rows, ((0, -len(rows) % WIDTH), (0, 0)))
    values = rows.reshape(-1, WIDTH, width).swapaxes(1, 2)
    return Panels(jnp.asarray(np.ascontiguousarray(values)), out)


def multiply(panels: Panels, x: jax.Array) -> jax.Array:
    """x [B, T, in] through the matrix: [B, T, *out]."""
    B, T, D = x.shape
    x = materialize(x, panels.values[0, 0, 0])  # otherwise recomputed for every panel
    for_each = jnp.broadcast_to(x.reshape(-1, D), (panels.values.shape[0], B * T, D))
    found = jax.lax.dot_general(for_each, panels.values, (((2,), (1,)), ((0,), (0,))))
    found = found.swapaxes(0, 1).reshape(B * T, -1)[:, : math.prod(panels.out)]
    return found.reshape(B, T, *panels.out)


def for_few_positions(params: Params) -> Params:
    """Parameters with a tuple of layers, their matrices in panels; tied embeddings stay, and get a
    head in panels beside them."""
    layers = [
        {**weights, **{name: in_panels(weights[name], n) for name, n in MATRICES.items()}}
        for weights in params["layers"]
    ]
    head = in_panels(params.get("lm_head", params["embed"]))
    return {**params, "layers": tuple(layers), "lm_head": head}
