"""One description, from which initial values, shardings and checkpoint targets follow."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FAMILIES, assert_equal, mesh_of

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import parameters, value
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import MSE, HLGauss, Quantile
from agentrm_jax.model.parameters import ParamSpec

CONFIG = LlamaConfig(
    vocab_size=64, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=48
)


def specs(description):
    return jax.tree.leaves(description, is_leaf=lambda x: isinstance(x, ParamSpec))


@pytest.fixture(scope="module")
def spread():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    return parameters.init(jax.random.key(0), CONFIG, mesh=mesh), mesh


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_derived_tree_agrees_with_the_description(config):
    mesh = mesh_of()
    params = jax.eval_shape(lambda: parameters.init(jax.random.key(0), config, jnp.bfloat16))
    target = parameters.abstract_of(parameters.describe(config), jnp.bfloat16, mesh)
    placed = parameters.shardings(config, mesh)
    assert jax.tree.structure(params) == jax.tree.structure(target) == jax.tree.structure(placed)
    for array, wanted, sharding, spec in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(target),
        jax.tree.leaves(placed),
        specs(parameters.describe(config)),
        strict=True,
    ):
        assert array.shape == wanted.shape == spec.shape
        assert array.dtype == wanted.dtype == jnp.bfloat16
        assert wanted.sharding == sharding
        assert len(spec.axes) == len(spec.shape)
    assert ("lm_head" in params) != config.tie_embeddings


def test_axes_name_sizes():
    """A logical axis has one size throughout, whatever parameter it occurs in."""
    sizes = {
        "layers": 3, "embed": 32, "heads": 4, "kv_heads": 2, "head_dim": 6, "mlp": 48, "vocab": 64
    }  # fmt: skip
    for spec in specs(parameters.describe(CONFIG)):
        for name, size in zip(spec.axes, spec.shape, strict=True):
            assert name is None or sizes[name] == size


def test_parameters_are_split_as_their_axes_say(spread):
    params, mesh = spread
    assert jax.tree.map(lambda x: x.sharding, params) == parameters.shardings(CONFIG, mesh)
    parts = {name: x.addressable_shards[0].data.shape for name, x in params["layers"].items()}
    assert parts["q"] == (3, 2, 6, 16)
    assert parts["k"] == (3, 1, 6, 16)
    assert parts["o"] == (3, 16, 2, 6)
    assert parts["gate"] == (3, 24, 16)
    assert parts["down"] == (3, 16, 24)
    assert parts["mlp_norm"] == (3, 32)
    assert params["embed"].addressable_shards[0].data.shape == (32, 16)
    assert params["lm_head"].addressable_shards[0].data.shape == (32, 16)


def test_neither_place_nor_other_parameters_change_the_values(spread):
    """One device and no head against eight devices and a head: what both have is equal."""
    few = parameters.init(jax.random.key(0), dataclasses.replace(CONFIG, tie_embeddings=True))
    more = jax.device_get(spread[0])
    assert more.pop("lm_head").shape == (64, 32)
    assert_equal(few, more)


def test_initial_values(spread):
    params = jax.device_get(spread[0])
    np.testing.assert_array_equal(params["final_norm"], 1.0)
    np.testing.assert_array_equal(params["layers"]["attention_norm"], 1.0)
    for spec, array in zip(
        specs(parameters.describe(CONFIG)), jax.tree.leaves(params), strict=True
    ):
        if spec.scale is not None:
            assert 0.9 * spec.scale < float(array.std()) < 1.05 * spec.scale
    drawn = [np.asarray(x[0]).ravel()[:100] for x in (params["layers"]["q"], params["embed"][None])]
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.5  # each from its own key
    assert (params["layers"]["gate"] != params["layers"]["up"]).any()


@pytest.mark.parametrize("head", [MSE(), HLGauss(), Quantile()], ids=repr)
def test_a_reward_model_is_a_trunk_and_a_head_in_float32(spread, head):
    description = parameters.describe_reward(CONFIG, head.outputs)
    target = parameters.abstract_of(description, jnp.bfloat16, mesh_of())
    policy = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), jax.device_get(spread[0]))
    reward = value.init_reward(policy, 0.25, head)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), reward)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), target)
    hidden = jax.random.normal(jax.random.key(1), (2, 3, CONFIG.d_model), jnp.bfloat16)
    values = value.readout(reward["value_head"], hidden, head)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, np.full((2, 3), 0.25), rtol=0 if head == MSE() else 1e-6)


def test_a_mesh_that_does_not_divide_the_model_is_named():
    with pytest.raises(UserError, match=r"^mesh\.tensor must divide .*kv_heads, 2 \(got 4\)$"):
        parameters.shardings(CONFIG, mesh_of(tensor=4))
    odd = dataclasses.replace(CONFIG, d_model=33)
    with pytest.raises(UserError, match=r"^mesh\.fsdp must divide .*embed, 33 \(got 2\)$"):
        parameters.abstract_of(parameters.describe(odd), jnp.float32, mesh_of(fsdp=2))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_layers": 0}, r"model\.num_layers"),
        ({"num_kv_heads": 3}, r"model\.num_kv_heads must divide num_heads, 4 \(got 3\)"),
        ({"head_dim": 7}, r"model\.head_dim must be even"),
    ],
)
def test_impossible_shapes_name_the_key(change, key):
    with pytest.raises(UserError, match=key):
        dataclasses.replace(CONFIG, **change)
