"""Matrices, keys and values in 8 bits: whole numbers from -127 to 127 and a scale.

A matrix has one scale for each output channel, keys and values one for each token and head. The
scale of x is the largest |x| divided by 127, so that zero stays zero. Products are computed with
the whole numbers, which any float type holds exactly, and are scaled afterwards: no array with the
values that they stand for is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from agentrm_jax.model.panels import MATRICES
from agentrm_jax.model.parameters import Params

LARGEST = 127
"""The largest whole number; -128 is not used, so that both signs are treated alike."""

_OUTER = {"embed": 1, "lm_head": 1}
"""The matrices outside of the layers, as `MATRICES`; a scale for each token of the vocabulary."""


@flax.struct.dataclass
class EightBits:
    """An array [*out, *in] in 8 bits.

    Attributes:
      values: int8 [*out, *in].
      scales: float32 [*out]; the array is `values` times its scales.
      dtype: Dtype of the array that this stands for: that of activations.
    """

    values: Any
    scales: Any
    dtype: Any = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.values.shape

    @property
    def shared(self) -> int:
        """The number of axes of `in`."""
        return self.values.ndim - self.scales.ndim


Stored = jax.Array | EightBits
"""An array as it is, or in 8 bits."""


def encode(x: jax.Array, shared: int = 1) -> EightBits:
    """Returns an array in 8 bits.

    Args:
      x: [*out, *in].
      shared: Number of axes of `in`, which have one scale together.
    """
    axes = tuple(range(x.ndim - shared, x.ndim))
    wide = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / LARGEST
    values = jnp.round(wide / jnp.where(scales == 0, 1.0, scales)).astype(jnp.int8)
    return EightBits(values, scales.reshape(scales.shape[: x.ndim - shared]), np.dtype(x.dtype))


def zeros(shape: tuple[int, ...], dtype: Any) -> EightBits:
    """Returns an array of zeros [*out, in] in 8 bits, with a scale for each of `out`.

    Args:
      shape: The shape.
      dtype: Dtype of the array that it stands for.
    """
    scales = jnp.zeros(shape[:-1], jnp.float32)
    return EightBits(jnp.zeros(shape, jnp.int8), scales, np.dtype(dtype))


def decode(x: Stored) -> jax.Array:
    """Returns the array that 8 bits stand for, in its own dtype; other arrays as they are."""
    if not isinstance(x, EightBits):
        return x
    scales = x.scales.reshape(*x.scales.shape, *(1,) * x.shared)
    return (x.values.astype(jnp.float32) * scales).astype(x.dtype)


def split(x: Stored, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Returns the numbers that a product takes, and the scales of its result or None.

    Args:
      x: The array.
      dtype: Dtype of the other side of the product, for whole numbers.
    """
    if isinstance(x, EightBits):
        return x.values.astype(dtype), x.scales
    return x, None


def take_rows(matrix: Stored, rows: jax.Array) -> jax.Array:
    """Returns rows of a matrix [*out, in], in its own dtype.

    Args:
      matrix: The matrix.
      rows: Numbers along the first axis, of any shape.
    """
    return decode(jax.tree.map(lambda x: x[rows], matrix))


def in_eight_bits(params: Params, *, consume: bool = False) -> Params:
    """Returns a policy or a trunk with all of its matrices in 8 bits.

    Norms and biases stay as they are; so do matrices that are in 8 bits already. Everything keeps
    its devices.

    Args:
      params: The parameters, with their layers stacked or not.
      consume: Whether each matrix is deleted when its copy is there: both are then in memory for
        one parameter at a time. Nothing else may use them afterwards.
    """

    def copied(matrix: jax.Array, shared: int) -> EightBits:
        made = _encoder(shared, matrix.ndim, matrix.sharding)(matrix)
        if consume:
            jax.block_until_ready(made)
            matrix.delete()
        return made

    return _changed(params, copied)


def abstract_in_eight_bits(params: Params) -> Params:
    """Returns the shapes and shardings of `in_eight_bits`, from those of the parameters."""

    def copied(matrix: jax.ShapeDtypeStruct, shared: int) -> EightBits:
        sharding = matrix.sharding
        assert isinstance(sharding, NamedSharding)
        values, scales = _shardings(shared, matrix.ndim, sharding)
        return EightBits(
            jax.ShapeDtypeStruct(matrix.shape, jnp.int8, sharding=values),
            jax.ShapeDtypeStruct(
                matrix.shape[: matrix.ndim - shared], jnp.float32, sharding=scales
            ),
            np.dtype(matrix.dtype),
        )

    return _changed(params, copied)


def _changed(params: Params, copied: Callable[[Any, int], EightBits]) -> Params:
    """Returns parameters with each matrix replaced by its copy, except those in 8 bits already."""

    def changed(weights: Params, shared: Mapping[str, int]) -> Params:
        return {
            name: copied(value, shared[name])
            if name in shared and not isinstance(value, EightBits)
            else value
            for name, value in weights.items()
        }

    layers = params["layers"]
    if isinstance(layers, tuple):
        own = tuple(changed(layer, MATRICES) for layer in layers)
    else:
        own = changed(layers, MATRICES)
    return {**changed(params, _OUTER), "layers": own}


@functools.cache
def _encoder(shared: int, ndim: int, sharding: Sharding) -> Callable[[jax.Array], EightBits]:
    """Returns a compiled `encode` whose result lies where its argument does."""
    made = functools.partial(encode, shared=shared)
    if not isinstance(sharding, NamedSharding):
        return jax.jit(made)
    values, scales = _shardings(shared, ndim, sharding)

    def placed(x: jax.Array) -> EightBits:
        out = made(x)
        return EightBits(
            jax.lax.with_sharding_constraint(out.values, values),
            jax.lax.with_sharding_constraint(out.scales, scales),
            out.dtype,
        )

    return jax.jit(placed)


def _shardings(
    shared: int, ndim: int, sharding: NamedSharding
) -> tuple[NamedSharding, NamedSharding]:
    """The shardings of values and scales: scales are split as the axes `out` are."""
    spec = PartitionSpec(*sharding.spec[: ndim - shared])
    return sharding, NamedSharding(sharding.mesh, spec)
