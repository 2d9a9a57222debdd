"""Checksums of arrays: every single change is seen, the sharding is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from agentrm_jax.runtime.array_checksums import checksums, sealed, unsealed
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

DTYPES = ("float32", "bfloat16", "float16", "int32", "int8", "uint32", "bool")


def _reference(values):
    """The checksum with Python's integers."""
    kind = np.dtype(f"uint{8 * values.dtype.itemsize}")
    total = 0
    for position, bits in enumerate(np.asarray(values).view(kind).ravel()):
        mixed = int(bits) ^ (position * 0x9E3779B9 % 2**32)
        mixed = mixed * 0x85EBCA6B % 2**32
        mixed = (mixed ^ (mixed >> 15)) * 0xC2B2AE35 % 2**32
        total += mixed ^ (mixed >> 13)
    return f"{values.dtype}:{total % 2**32:08x}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_a_checksum_is_that_of_plain_integers(dtype, shape):
    values = jax.random.randint(jax.random.key(0), shape, 0, 2).astype(dtype)
    assert checksums({"a": {"b": values}}) == {"a.b": _reference(np.asarray(values))}


@pytest.mark.parametrize("bit", range(32))
def test_every_flipped_bit_changes_the_checksum(bit):
    values = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    before = checksums({"x": jnp.asarray(values)})
    for place in range(0, 64, 7):
        changed = values.copy()
        changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
        assert checksums({"x": jnp.asarray(changed)}) != before


def test_exchanged_elements_and_signs_of_zero_change_the_checksum():
    x = jnp.asarray([1.0, 2.0, 0.0, 0.0])
    others = [[2.0, 1.0, 0.0, 0.0], [1.0, 2.0, -0.0, 0.0], [1.0, 2.0, 0.0, -0.0]]
    found = {checksums({"x": jnp.asarray(y)})["x"] for y in others} | {checksums({"x": x})["x"]}
    assert len(found) == 4


def test_the_sharding_does_not_matter():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 simulated devices")
    x = jax.random.normal(jax.random.key(0), (8, 6))
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    for spec in (P(), P("fsdp", "tensor"), P(None, "tensor")):
        assert checksums({"x": jax.device_put(x, NamedSharding(mesh, spec))}) == checksums({"x": x})


def test_a_sealed_record_is_read_back_and_a_changed_one_is_refused():
    stored = sealed({"loss": 0.1, "name": "x"})
    assert unsealed(stored) == {"loss": 0.1, "name": "x"}
    assert unsealed(None) is unsealed({"other": 1}) is None
    for changed in (stored["record"].replace("1", "3"), 7):
        with pytest.raises(ValueError, match="damaged"):
            unsealed({**stored, "record": changed})
