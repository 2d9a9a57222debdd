"""Value heads: what they learn, what they begin as, what of them is linear."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import value
from agentrm_jax.model.value import HeadConfig, Readout

KINDS = [HeadConfig(kind=kind, bins=21) for kind in ("mse", "hl_gauss", "quantile")]
RNG = np.random.default_rng(0)


def drawn(config, D=6):
    shape = () if config.outputs is None else (config.outputs,)
    return {
        "kernel": jnp.float32(RNG.standard_normal((*shape, D))),
        "bias": jnp.float32(RNG.standard_normal(shape)),
    }


def fitted(config, targets):
    """Outputs for one state that was seen with all these targets."""

    @jax.jit
    def descend(outputs):
        def update(outputs, rate):
            slope = jax.grad(lambda o: value.losses(o, targets, config).mean())(outputs)
            return outputs - rate * slope, None

        return jax.lax.scan(update, outputs, jnp.geomspace(config.bins, 0.01, 4000))[0]

    return descend(jnp.full(config.bins, 0.5))


def test_quantiles_become_those_of_the_targets():
    config = HeadConfig(kind="quantile", bins=5, huber=1e-4)
    targets = np.float32(RNG.random(2001) ** 2)
    wanted = np.quantile(targets, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(fitted(config, targets), wanted, atol=5e-3)


def test_bins_become_the_distribution_of_the_targets():
    config = HeadConfig(kind="hl_gauss", bins=21)
    targets = np.float32([0.0, 0.0, 0.0, 1.0])
    outputs = fitted(config, targets)
    assert float(value.value_of(outputs, config)) == pytest.approx(0.25, abs=1e-3)
    shares = np.asarray(jax.nn.softmax(outputs))
    assert shares[:10].sum() == pytest.approx(0.75, abs=1e-3)
    assert shares[11:].sum() == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("bins", [21, 51])
def test_a_smoothed_target_keeps_its_mean(bins):
    config = HeadConfig(kind="hl_gauss", bins=bins)
    targets = np.linspace(0, 1, 101, dtype=np.float32)
    shares = np.asarray(value.histogram(targets, config))
    np.testing.assert_allclose(shares.sum(-1), 1.0, rtol=1e-5)
    centres = config.low + (np.arange(bins) + 0.5) * (config.high - config.low) / bins
    np.testing.assert_allclose(shares @ centres, targets, atol=2e-3 if bins == 21 else 1e-5)


def test_a_target_beyond_the_bins_counts_as_at_their_edge():
    """Tokens without a label have target 0 and weight 0: their loss must be a number."""
    config = HeadConfig(kind="hl_gauss", low=5.0, high=6.0)
    beyond, edge = value.histogram(np.float32([0.0, 5.0]), config)
    np.testing.assert_array_equal(beyond, edge)
    assert np.isfinite(value.losses(jnp.zeros(51), jnp.float32(0.0), config))
    with pytest.raises(UserError, match=r"^low and high .* \[0, 5.5\] \(got \[5.0, 6.0\]\)$"):
        config.check_targets(np.array([0.0, 5.5]))
    HeadConfig(kind="quantile", low=5.0, high=6.0).check_targets(np.zeros(1))


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
def test_the_mean_label_is_the_first_value(config, mean):
    params = value.init_reward({"final_norm": np.ones(6)}, mean, config)
    hidden = jnp.float32(RNG.standard_normal((3, 6)))
    np.testing.assert_allclose(Readout(config)(params["value_head"], hidden), mean, atol=1e-6)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_the_linear_map_gives_the_value(config):
    head, hidden = drawn(config), jnp.float32(RNG.standard_normal((4, 6)))
    found = value.linear(head, config)
    if config.kind == "hl_gauss":
        assert found is None
        return
    weight, bias = found
    values = value.readout(head, hidden, config)
    np.testing.assert_allclose(hidden @ weight + bias, values, rtol=1e-5, atol=1e-6)


def test_equal_heads_share_a_program():
    traces = []

    def program(readout, head, hidden):
        traces.append(readout)
        return readout(head, hidden)

    compiled = jax.jit(program, static_argnums=0)
    for kind in ("quantile", "quantile", "hl_gauss"):
        config = HeadConfig(kind=kind, bins=21)
        compiled(Readout(config), drawn(config), jnp.zeros((1, 6)))
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "two_hot"}, "kind must be one of .*'two_hot'"),
        ({"bins": 1}, "bins must be at least 2"),
        ({"low": 1.2}, r"low must be below high, 1\.1 "),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"huber": -1.0}, "huber must be above 0"),
    ],
)
def test_bad_values_name_the_key(values, key):
    with pytest.raises(UserError, match=key):
        HeadConfig(**values)
