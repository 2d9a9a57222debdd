"""Matrices in 8 bits: products against the dense product of what they stand for."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from agentrm_jax.model import llama, parameters
from agentrm_jax.model.eight_bits import (
    EightBits,
    abstract_in_eight_bits,
    decode,
    encode,
    in_eight_bits,
    take_rows,
)
from agentrm_jax.model.panels import MATRICES
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG, drawn


def normal(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def test_the_error_is_at_most_half_a_step():
    x = normal(0, 5, 3, 8, 16) * jnp.arange(5)[:, None, None, None]  # one channel of zeros
    for shared in (1, 2):
        found = encode(x, shared)
        assert found.values.dtype == jnp.int8
        assert found.scales.shape == x.shape[: x.ndim - shared]
        assert int(jnp.abs(found.values).max()) == 127
        steps = found.scales.reshape(*found.scales.shape, *(1,) * shared)
        error = np.abs(np.float64(decode(found)) - np.float64(x))
        assert np.all(error <= np.float64(steps) * (0.5 + 1e-5))
        assert error.max() > 0.4 * float(steps.max())
        again = encode(decode(found), shared)
        np.testing.assert_array_equal(again.values, found.values)
        np.testing.assert_allclose(again.scales, found.scales, rtol=1e-6)
    np.testing.assert_array_equal(decode(encode(x))[0], 0.0)


def test_what_is_not_finite_stays_visible():
    x = normal(0, 3, 8).at[1, 2].set(jnp.nan)
    assert np.isnan(decode(encode(x))[1]).all()
    assert np.isfinite(decode(encode(x))[0]).all()


@pytest.mark.parametrize("positions", [3, llama.FEW + 44])
@pytest.mark.parametrize("shared", [1, 2])
def test_products_equal_those_of_what_is_stored(shared, positions):
    """Few and many positions take two ways through `project`; one and two axes are summed over."""
    matrix = encode(normal(1, 7, 4, 16)[..., : 16 if shared == 1 else 8], shared)
    inner = matrix.shape[matrix.values.ndim - shared :]
    x = normal(2, 1, positions, *inner)
    found = llama.project(matrix, x, shared=shared)
    axes = [tuple(range(-shared, 0))] * 2
    dense = np.tensordot(np.float64(x), np.float64(decode(matrix)), axes)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, dense, rtol=1e-5, atol=1e-5)
    wide = llama.project(matrix, x.astype(jnp.bfloat16), shared=shared, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    assert llama.project(matrix, x.astype(jnp.bfloat16), shared=shared).dtype == jnp.bfloat16
    rounded = np.tensordot(
        np.float64(x.astype(jnp.bfloat16)),
        np.float64(matrix.values) * np.float64(matrix.scales).reshape(
            *matrix.scales.shape, *(1,) * shared
        ),
        axes,
    )  # fmt: skip
    np.testing.assert_allclose(wide, rounded, rtol=1e-5, atol=1e-5)  # whole numbers are exact


def test_rows_are_those_of_what_is_stored():
    matrix = encode(normal(3, 9, 8, dtype=jnp.bfloat16))
    rows = jnp.asarray([[1, 8], [0, 1]])
    found = take_rows(matrix, rows)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, decode(matrix)[rows])
    np.testing.assert_array_equal(take_rows(decode(matrix), rows), found)


def decoded(params):
    """A model whose matrices have the values that 8 bits stand for."""
    return jax.tree.map(decode, params, is_leaf=lambda x: isinstance(x, EightBits))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_what_its_decoded_weights_compute(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params = drawn(np.random.default_rng(0))
    if not tied:
        params = {**params, "lm_head": params["embed"][::-1] * 1.5}
    kept = in_eight_bits(params)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 320, (2, 12)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))

    @jax.jit
    def logits(params):
        hidden = llama.forward(params, config, tokens, positions, jnp.ones_like(tokens))
        return llama.logits(params, config, hidden)

    found, wanted, plain = logits(kept), logits(decoded(kept)), logits(params)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    distance = float(jnp.abs(found - plain).max())
    assert 1e-3 < distance < 0.1 * float(jnp.abs(plain).max())


def test_only_matrices_change_and_nothing_is_encoded_twice():
    params = drawn(np.random.default_rng(0))
    kept = in_eight_bits(params)
    changed = {name for name, x in kept["layers"].items() if isinstance(x, EightBits)}
    assert changed == set(MATRICES)
    assert isinstance(kept["embed"], EightBits)
    assert kept["layers"]["mlp_norm"] is params["layers"]["mlp_norm"]
    assert kept["layers"]["o"].scales.shape == (2, 32)  # for each layer and output
    layers = llama.unstacked(kept)["layers"]
    apart = in_eight_bits(llama.unstacked(params))["layers"]
    for found, wanted in zip(jax.tree.leaves(layers), jax.tree.leaves(apart), strict=True):
        np.testing.assert_array_equal(found, wanted)
    again = in_eight_bits(kept, consume=True)
    assert again["layers"]["q"] is kept["layers"]["q"]
    assert not kept["embed"].values.is_deleted()


def test_what_is_consumed_is_deleted():
    params = drawn(np.random.default_rng(0))
    kept = llama.unstacked(in_eight_bits(params, consume=True), consume=True)
    assert params["embed"].is_deleted()
    assert all(params["layers"][name].is_deleted() for name in MATRICES)
    jax.block_until_ready(kept)


def test_shards_stay_where_they_are():
    """Values as the matrix, scales as its outputs; and the plan's shapes are the same."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(drawn(np.random.default_rng(0)), parameters.shardings(CONFIG, mesh))
    kept = in_eight_bits(params)
    planned = abstract_in_eight_bits(
        parameters.abstract_of(parameters.describe(CONFIG), "float32", mesh)
    )

    def check(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(check, planned, kept)
    gate, down = kept["layers"]["gate"], kept["layers"]["down"]

    def split(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    assert gate.values.sharding.is_equivalent_to(split(None, "tensor", "fsdp"), 3)
    assert gate.scales.sharding.is_equivalent_to(split(None, "tensor"), 2)
    assert down.scales.sharding.is_equivalent_to(split(None, "fsdp"), 2)
    alone = in_eight_bits(drawn(np.random.default_rng(0)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(kept), jax.device_get(alone))
