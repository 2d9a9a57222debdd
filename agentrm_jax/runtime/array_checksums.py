"""Checksums of arrays, computed where they are: on any mesh, of any number of processes.

A checkpoint is written in the background and committed by Orbax. Checksums of its values go into
the same commit, so that there is no moment at which one is there without the other, and a restored
state is checked as it will be used, whatever its files look like.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their dotted paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def checksums(tree: Any) -> dict[str, str]:
    """Returns the dtype and a checksum of 32 bits of every array of a tree, by its dotted path.

    The checksum depends on values and shape, not on sharding. A change of one element changes it
    always, other damage goes unnoticed once in 2^32.

    Args:
      tree: Arrays of numbers or booleans, all on one mesh or one device.
    """
    leaves = {name: jnp.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    sums = jax.device_get(_compiled(_everywhere(leaves))(leaves))
    return {name: f"{leaves[name].dtype}:{value:08x}" for name, value in sums.items()}


def _everywhere(leaves: Mapping[str, jax.Array]) -> NamedSharding | None:
    for leaf in leaves.values():
        if isinstance(leaf.sharding, NamedSharding):
            return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return None


@functools.cache
def _compiled(everywhere: NamedSharding | None) -> Any:
    def of_all(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: _checksum(leaf) for name, leaf in leaves.items()}

    return jax.jit(of_all, out_shardings=everywhere)


def _checksum(values: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of a bijection of each element's bits that depends on its position."""
    mixed = _bits(values) ^ (_positions(values.shape) * jnp.uint32(0x9E3779B9))
    mixed *= jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _bits(values: jax.Array) -> jax.Array:
    if values.dtype == jnp.bool_:
        return values.astype(jnp.uint32)
    kind = jnp.dtype(f"uint{8 * values.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(values, kind).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """The index of each element in row-major order, modulo 2^32; no reshape, so none is moved."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(np.cumprod([1, *shape[:0:-1]])[::-1] if shape else ()):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        position += index * jnp.uint32(int(stride) % 2**32)
    return position


def sealed(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns a JSON record as its text and the CRC-32 of it."""
    text = json.dumps(record, sort_keys=True)
    return {"record": text, "crc32": f"{zlib.crc32(text.encode()):08x}"}


def unsealed(stored: Any) -> dict[str, Any] | None:
    """Returns the record of `sealed`; None if there is none, as in files of older versions.

    Raises:
      ValueError: It changed since.
    """
    if not isinstance(stored, Mapping) or "record" not in stored:
        return None
    text = stored["record"]
    if not isinstance(text, str) or stored.get("crc32") != f"{zlib.crc32(text.encode()):08x}":
        raise ValueError("the record of checksums is damaged")
    return json.loads(text)
