"""Moments in bfloat16 against those in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_cases import CONFIG, mesh_of, policy_params

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import parameters
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import abstract_state, make_state

SETTINGS = {"learning_rate": 3e-2, "schedule": "constant", "warmup_fraction": 0.0}
HALF = OptimizerConfig(**SETTINGS, moments="bfloat16")


def _trained(optimizer, updates=60):
    """Regression with noisy gradients: the parameters after each update, and the last state."""
    rng = np.random.default_rng(0)
    wanted = jnp.float32(rng.standard_normal((16, 8)))
    params = {"w": jnp.zeros((16, 8)), "b": jnp.zeros(8)}

    def loss(params, x):
        return jnp.mean(jnp.square(x @ params["w"] + params["b"] - x @ wanted))

    @jax.jit
    def update(params, state, x):
        value, slope = jax.value_and_grad(loss)(params, x)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state, value

    state, seen, values = optimizer.init(params), [], []
    for x in jnp.float32(rng.standard_normal((updates, 32, 16))):
        params, state, value = update(params, state, x)
        seen.append(np.concatenate([np.ravel(params["w"]), params["b"]]))
        values.append(float(value))
    return np.stack(seen), state, values


def test_float32_is_adamw():
    ours, state, _ = _trained(make_optimizer(OptimizerConfig(**SETTINGS, weight_decay=0.1), 60))
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(3e-2, b1=0.9, b2=0.95, weight_decay=0.1)
    )
    theirs, other, _ = _trained(chain)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert jax.tree.structure(state[1][0]) == jax.tree.structure(other[1][0])


def test_bfloat16_moments_make_nearly_the_same_updates():
    whole, _, losses = _trained(make_optimizer(OptimizerConfig(**SETTINGS), 60))
    half, state, half_losses = _trained(make_optimizer(HALF, 60))
    adam = state[1][0]
    assert {x.dtype for x in jax.tree.leaves((adam.mu, adam.nu))} == {jnp.dtype("bfloat16")}
    assert adam.count.dtype == jnp.int32
    steps, half_steps = np.diff(whole, axis=0), np.diff(half, axis=0)
    assert np.linalg.norm(half_steps[0] - steps[0]) < 0.01 * np.linalg.norm(steps[0])
    assert np.linalg.norm(half_steps - steps) < 0.02 * np.linalg.norm(steps)
    assert np.abs(half - whole).max() < 0.02
    assert losses[-1] < 0.1 * losses[0]
    assert half_losses[-1] == pytest.approx(losses[-1], rel=0.1)


def test_the_second_moment_decays():
    """With the default b2; above 0.99 it could not, hence it is refused."""
    optimizer = make_optimizer(HALF, 10)
    params = {"w": jnp.zeros(4)}
    state = optimizer.init(params)
    for slope in (1.0, *[0.0] * 100):
        _, state = optimizer.update({"w": jnp.full(4, slope)}, state, params)
    first = 0.05 * 0.5**2  # the clipped gradient's
    assert float(state[1][0].nu["w"][0]) == pytest.approx(first * 0.95**100, rel=0.2)
    with pytest.raises(UserError, match=r"b2 must be at most 0\.99 .*got 0\.999"):
        OptimizerConfig(moments="bfloat16", b2=0.999)
    with pytest.raises(UserError, match=r"moments must be one of float32, bfloat16 .*'float16'"):
        OptimizerConfig(moments="float16")


def test_they_lie_beside_their_parameters_and_plan_sees_them():
    mesh = mesh_of(2, 2, 2)
    optimizer = make_optimizer(HALF, 10)
    state = make_state(policy_params(mesh), optimizer, mesh)
    adam = state.opt_state[1][0]
    for name, param in state.params["layers"].items():
        for moments in (adam.mu, adam.nu):
            assert moments["layers"][name].sharding == param.sharding
    planned = abstract_state(
        parameters.abstract_of(parameters.describe(CONFIG), "float32", mesh), optimizer, mesh
    )

    def alike(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(alike, planned, state)
    size = sum(x.size for x in jax.tree.leaves(state.params))
    assert sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) == 4 * size + 8
