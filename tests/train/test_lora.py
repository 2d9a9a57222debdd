"""Adapters against dense matrices: values, gradients, what stays, resuming."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import CONFIG, batch_of, mesh_of, policy_params, reward_params, rows_of

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import llama, lora, parameters
from agentrm_jax.model.lora import LoraConfig
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.train import explicit, sft
from agentrm_jax.train.fit import FitConfig, FitInputs, fit
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import abstract_state, make_state
from agentrm_jax.train.trainable import make_trainable

LORA = LoraConfig(rank=3, alpha=6.0)
FEW = LoraConfig(rank=3, alpha=6.0, matrices=("v", "o"))
CASES = [(sft.make_loss, policy_params), (explicit.make_loss, reward_params)]
BOTH = pytest.mark.parametrize(("make_loss", "params_of"), CASES, ids=["sft", "explicit"])
BATCH = batch_of(rows_of(12))


def fresh(mesh=None, config=LORA):
    return lora.init_adapters(jax.random.key(2), CONFIG, config, mesh or mesh_of())


def moved(config=LORA):
    """Adapters that are no longer at rest."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + jnp.float32(0.1 * rng.standard_normal(x.shape)), fresh(config=config)
    )


def adapted_loss(make_loss, config=LORA):
    return jax.jit(jax.value_and_grad(lora.adapted(make_loss(CONFIG), config), has_aux=True))


def trunk_of(model):
    return model.get("trunk", model)


@BOTH
def test_fresh_adapters_change_nothing(make_loss, params_of):
    params = params_of()
    trained, frozen = lora.parts(params, fresh())
    (loss, _), grads = adapted_loss(make_loss)(trained, BATCH, frozen)
    wanted, _ = jax.jit(make_loss(CONFIG))(params, BATCH)
    assert float(loss) == float(wanted)
    chex.assert_trees_all_equal(lora.merged(trained, frozen, LORA), params)
    assert all(not np.any(own["a"]) and np.any(own["b"]) for own in grads["adapters"].values())


@BOTH
@pytest.mark.parametrize("config", [LORA, FEW], ids=["all", "two"])
def test_gradients_are_those_of_the_dense_model(make_loss, params_of, config):
    """dA = s B^T dW and dB = s dW A^T, layer by layer, of the gradient of the merged matrix."""
    trained, frozen = lora.parts(params_of(), moved(config))
    (loss, _), grads = adapted_loss(make_loss, config)(trained, BATCH, frozen)
    whole = lora.merged(trained, frozen, config)
    dense_loss, dense = jax.jit(jax.value_and_grad(make_loss(CONFIG), has_aux=True))(whole, BATCH)
    assert float(loss) == pytest.approx(float(dense_loss[0]), rel=1e-5)
    if "value_head" in dense:
        for name, x in dense["value_head"].items():
            np.testing.assert_allclose(grads["value_head"][name], x, rtol=1e-4, atol=1e-5)
    assert set(grads["adapters"]) == set(config.matrices)
    for name, own in grads["adapters"].items():
        a, b = (np.float64(trained["adapters"][name][side]) for side in "ab")
        L, r = a.shape[:2]
        a, b = a.reshape(L, r, -1), b.reshape(L, -1, r)
        slope = np.float64(trunk_of(dense)["layers"][name]).reshape(L, b.shape[1], a.shape[2])
        for side, wanted in (("a", b.swapaxes(1, 2) @ slope), ("b", slope @ a.swapaxes(1, 2))):
            found = np.asarray(own[side]).reshape(wanted.shape)
            error = np.linalg.norm(found - config.scale * wanted)
            assert error < 1e-5 * np.linalg.norm(config.scale * wanted), (name, side)


def test_the_merged_model_says_the_same():
    trained, frozen = lora.parts(policy_params(), moved())
    made = lora.merged(trained, frozen, LORA)
    logits = []
    for tokens in (BATCH["tokens"], np.tile(BATCH["tokens"], (1, 12))):  # few positions and many
        ones = np.ones_like(tokens)
        positions = np.arange(tokens.shape[1], dtype=np.int32) * ones

        def whole(params, tokens=tokens, positions=positions, ones=ones):
            hidden = llama.forward(params, CONFIG, tokens, positions, ones)
            return llama.logits(params, CONFIG, hidden), {}

        through = lora.adapted(lambda params, batch, whole=whole: whole(params), LORA)
        found, wanted = through(trained, None, frozen)[0], whole(made)[0]
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        logits.append(wanted)
    before = whole(policy_params())[0]
    assert float(jnp.abs(logits[-1] - before).max()) > 0.1


def test_merging_keeps_bfloat16():
    base = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), policy_params())
    trained, frozen = lora.parts(base, moved())
    made = lora.merged(trained, frozen, LORA)
    own = trained["adapters"]["gate"]
    exact = np.float32(base["layers"]["gate"]) + 2.0 * np.float32(own["b"]) @ np.float32(own["a"])
    found = made["layers"]["gate"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found), exact, rtol=2**-8, atol=1e-6)


class _Killed(Exception):
    pass


def _fit(directory, mesh, on_update=lambda *_: None):
    loss = explicit.make_loss(CONFIG, ForwardOptions(mesh=mesh))
    model = make_trainable(reward_params(mesh), loss, LORA, lambda: fresh(mesh))
    before = jax.tree.map(np.array, model.frozen)
    found, row = fit(
        FitInputs(
            model=model,
            rows=rows_of(8),
            config=FitConfig(
                num_updates=24, batch_size=4, length=32, metrics_every=4, checkpoint_every=8,
                accumulation=2 if mesh.size == 1 else 1,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2),
            directory=directory / "training",
            mesh=mesh,
            seed=0,
            metrics=MetricWriter(directory / "metrics.jsonl", "reward"),
            describe=explicit.describe,
            on_update=on_update,
        )
    )  # fmt: skip
    chex.assert_trees_all_equal(before, model.frozen)
    return found, row


def test_adapters_learn_and_resume_to_the_bit(tmp_path):
    """The base is the same to the bit after each training (see `_fit`)."""
    rows = []
    whole, last = _fit(tmp_path / "whole", mesh_of(), lambda *seen: rows.append(seen[2]))
    assert last["loss"] < 0.5 * rows[0]["loss"]

    def kill(update, *_):
        if update == 20:
            raise _Killed

    with pytest.raises(_Killed):
        _fit(tmp_path / "cut", mesh_of(), kill)
    again, _ = _fit(tmp_path / "cut", mesh_of())
    chex.assert_trees_all_equal(whole, again)


def test_adapters_lie_as_their_matrices_do():
    mesh = mesh_of(2, 2, 2)
    adapters = fresh(mesh)
    found = {
        (name, side): x.addressable_shards[0].data.shape
        for name, own in adapters.items()
        for side, x in own.items()
    }
    assert found["q", "a"] == (2, 3, 16)
    assert found["q", "b"] == (2, 2, 8, 3)
    assert found["o", "a"] == (2, 3, 2, 8)
    assert found["o", "b"] == (2, 16, 3)
    assert found["down", "a"] == (2, 3, 24)
    one = fresh()
    chex.assert_trees_all_equal(jax.device_get(adapters), jax.device_get(one))


def test_no_state_is_kept_for_the_base():
    """And what `plan` compiles is what training holds."""
    mesh = mesh_of(2, 2, 2)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    adapters = fresh(mesh)
    state = make_state(lora.parts(policy_params(mesh), adapters)[0], optimizer, mesh)
    size = sum(x.size for x in jax.tree.leaves(adapters))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * size + 2  # two counts
    described = lora.describe_adapters(parameters.describe(CONFIG), LORA)
    planned = abstract_state(
        parameters.abstract_of({"adapters": described}, "float32", mesh), optimizer, mesh
    )

    def alike(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(alike, planned, state)


def test_eight_devices_train_the_same(tmp_path):
    one, row = _fit(tmp_path / "one", mesh_of())
    many, other = _fit(tmp_path / "many", mesh_of(1, 4, 2))
    assert other["loss"] == pytest.approx(row["loss"], rel=0.05)
    error = [float(jnp.abs(x - np.asarray(y)).max()) for x, y in zip(
        jax.tree.leaves(one), jax.tree.leaves(many), strict=True)]  # fmt: skip
    assert max(error) < 1e-2


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"rank": -1}, "rank must be at least 0"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"matrices": ("q", "embed")}, "matrices must be one of q, k, .*got 'embed'"),
        ({"matrices": ()}, "matrices must name at least one"),
    ],
)
def test_bad_values_name_the_key(values, key):
    with pytest.raises(UserError, match=key):
        LoraConfig(**values)
