"""Value heads: what they learn, how they begin, how they are stored, what is exported."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import value
from agentrm_jax.model.heads import (
    HEADS,
    MSE,
    HLGauss,
    Quantile,
    ValueHead,
    head_from_json,
    head_to_json,
    register_head,
)
from agentrm_jax.model.value import Readout

BUILT_IN = {"mse": MSE(), "hl_gauss": HLGauss(bins=21), "quantile": Quantile(bins=21)}
EACH = pytest.mark.parametrize("head", BUILT_IN.values(), ids=BUILT_IN)
RNG = np.random.default_rng(0)


def drawn(head, D=6):
    shape = () if head.outputs is None else (head.outputs,)
    return {
        "kernel": jnp.float32(RNG.standard_normal((*shape, D))),
        "bias": jnp.float32(RNG.standard_normal(shape)),
    }


def fitted(head, targets):
    """Outputs for one state that was seen with all these targets."""

    @jax.jit
    def descend(outputs):
        def update(outputs, rate):
            slope = jax.grad(lambda o: head.losses(o, targets).mean())(outputs)
            return outputs - rate * slope, None

        return jax.lax.scan(update, outputs, jnp.geomspace(head.bins, 0.01, 4000))[0]

    return descend(jnp.full(head.bins, 0.5))


def test_a_quantile_head_is_read_at_one_quantile():
    head, outputs = Quantile(bins=8), RNG.standard_normal((3, 8)).astype(np.float32)
    for level in (0.01, 1 / 16, 0.25, 0.3, 0.5, 0.99):  # 1/16 and 15/16 are the outermost levels
        found = head.at_quantile(level).value(jnp.asarray(outputs))
        wanted = np.quantile(outputs, level, axis=-1, method="hazen")
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    low = head.at_quantile(0.25)
    assert low.outputs == 8
    assert low == head.at_quantile(0.25) != head.at_quantile(0.5)
    assert low.linear(drawn(head)) is None
    for level in (0.0, 1.0):
        with pytest.raises(UserError, match="quantile must be above 0 and below 1"):
            head.at_quantile(level)
    with pytest.raises(UserError, match="quantile must be left out, because the head MSE predicts"):
        MSE().at_quantile(0.5)


def test_quantiles_become_those_of_the_targets():
    targets = np.float32(RNG.random(2001) ** 2)
    wanted = np.quantile(targets, [0.1, 0.3, 0.5, 0.7, 0.9])
    found = fitted(Quantile(bins=5, huber=1e-4), targets)
    np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_bins_become_the_distribution_of_the_targets():
    head = HLGauss(bins=21)
    outputs = fitted(head, np.float32([0.0, 0.0, 0.0, 1.0]))
    assert float(head.value(outputs)) == pytest.approx(0.25, abs=1e-3)
    mass = np.asarray(jax.nn.softmax(outputs))
    assert mass[:10].sum() == pytest.approx(0.75, abs=1e-3)
    assert mass[11:].sum() == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("bins", [21, 51])
def test_a_smoothed_target_keeps_its_mean(bins):
    head = HLGauss(bins=bins)
    targets = np.linspace(0, 1, 101, dtype=np.float32)
    mass = np.asarray(head.histogram(targets))
    np.testing.assert_allclose(mass.sum(-1), 1.0, rtol=1e-5)
    centres = head.low + (np.arange(bins) + 0.5) * (head.high - head.low) / bins
    np.testing.assert_allclose(mass @ centres, targets, atol=2e-3 if bins == 21 else 1e-5)


def test_a_target_beyond_the_bins_counts_as_at_their_edge():
    """Tokens without a label have target 0 and weight 0: their loss must be a number."""
    head = HLGauss(low=5.0, high=6.0)
    beyond, edge = head.histogram(np.float32([0.0, 5.0]))
    np.testing.assert_array_equal(beyond, edge)
    assert np.isfinite(head.losses(jnp.zeros(51), jnp.float32(0.0)))
    message = r"low and high must .* which lie in \[0, 5.5\] \(got \[5.0, 6.0\]\)"
    with pytest.raises(UserError, match=message):
        head.check_targets(np.array([0.0, 5.5]))
    Quantile().check_targets(np.array([-7.0, 5.5]))


@EACH
@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
def test_the_mean_label_is_the_first_value(head, mean):
    params = value.init_reward({"final_norm": np.ones(6)}, mean, head)
    hidden = jnp.float32(RNG.standard_normal((3, 6)))
    np.testing.assert_allclose(Readout(head)(params["value_head"], hidden), mean, atol=1e-6)


@EACH
def test_the_linear_map_gives_the_value(head):
    params, hidden = drawn(head), jnp.float32(RNG.standard_normal((4, 6)))
    found = head.linear(params)
    if isinstance(head, HLGauss):
        assert found is None
        assert "softmax" in head.not_linear
        return
    weight, bias = found
    values = value.readout(params, hidden, head)
    np.testing.assert_allclose(hidden @ weight + bias, values, rtol=1e-5, atol=1e-6)


def test_equal_heads_share_a_program():
    traces = []

    def program(readout, params, hidden):
        traces.append(readout)
        return readout(params, hidden)

    compiled = jax.jit(program, static_argnums=0)
    for head in (Quantile(bins=21), Quantile(bins=21), HLGauss(bins=21)):
        compiled(Readout(head), drawn(head), jnp.zeros((1, 6)))
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (HLGauss, {"bins": 1}, "bins must be at least 2"),
        (HLGauss, {"low": 1.2}, r"low must be below high, 1\.1 "),
        (HLGauss, {"sigma": 0.0}, "sigma must be above 0"),
        (Quantile, {"bins": 1}, "bins must be at least 2"),
        (Quantile, {"huber": -1.0}, "huber must be above 0"),
    ],
)
def test_bad_values_name_the_key(kind, values, key):
    with pytest.raises(UserError, match=key):
        kind(**values)


@EACH
def test_a_stored_head_is_read_again(head):
    assert HEADS.name_of(type(head)) in BUILT_IN
    assert head_from_json(json.loads(json.dumps(head_to_json(head)))) == head


def test_heads_of_earlier_versions_are_read():
    """They were stored with the keys of all kinds, or not at all."""
    keys = {"bins": 7, "low": -0.2, "high": 1.3, "sigma": 0.5, "huber": 0.02}
    assert head_from_json({"kind": "mse", **keys}) == MSE()
    assert head_from_json({"kind": "quantile", **keys}) == Quantile(bins=7, huber=0.02)
    wanted = HLGauss(bins=7, low=-0.2, high=1.3, sigma=0.5)
    assert head_from_json({"kind": "hl_gauss", **keys}) == wanted
    assert head_from_json({}) == MSE()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signed(ValueHead):
    """Two numbers whose difference is the value; a head that the package does not have."""

    powers: tuple[int, ...] = (2, 4)

    @property
    def outputs(self) -> int:
        return 2

    def value(self, outputs):
        return outputs[..., 0] - outputs[..., 1]

    def losses(self, outputs, targets):
        error = jnp.abs(self.value(outputs) - targets)
        return sum(error**power for power in self.powers)

    def initial_bias(self, mean):
        return np.array([mean, 0.0])


def test_a_head_from_outside_has_a_name_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(HEADS, "_registered", {})
    with pytest.raises(UserError, match=r"Signed has no name.*@register_head"):
        head_to_json(Signed())
    stored = {"kind": "signed", "powers": [2]}
    with pytest.raises(UserError, match=r"'signed' is not registered.*plugins.*hl_gauss, mse"):
        head_from_json(stored)
    register_head("signed")(Signed)
    assert head_to_json(Signed(powers=(2,))) == {"kind": "signed", "powers": (2,)}
    found = head_from_json(stored)
    assert found == Signed(powers=(2,))
    assert hash(found) == hash(Signed(powers=(2,)))  # it is an argument of compiled programs
    assert found.linear(drawn(found)) is None
    assert "not a linear function" in found.not_linear


def test_what_is_no_head_is_refused(monkeypatch):
    monkeypatch.setattr(HEADS, "_registered", {})

    class Plain(MSE):
        """Without the decorator its own fields would be ignored."""

    for kind in (dict, Plain):
        with pytest.raises(UserError, match=f"{kind.__name__} must be a class derived"):
            register_head("mine")(kind)
    with pytest.raises(UserError, match="'mse' is provided by agentrm-jax"):
        register_head("mse")


CHECKED = """
import jaxtyping
with jaxtyping.install_import_hook(["agentrm_jax.model.heads", "agentrm_jax.model.value"],
                                   "beartype.beartype"):
    from agentrm_jax.model import heads, value
import jax.numpy as jnp

hidden, targets = jnp.zeros((4, 3, 6)), jnp.zeros((4, 3))
for head in (heads.MSE(), heads.HLGauss(bins=5), heads.Quantile(bins=5)):
    params = value.init_reward({"final_norm": jnp.ones(6)}, 0.5, head)["value_head"]
    outputs = value.head_outputs(params, hidden)
    assert head.losses(outputs, targets).shape == head.value(outputs).shape == (4, 3)
    assert value.Readout(head)(params, hidden).shape == (4, 3)
    head.linear(params)
    try:
        head.losses(outputs, jnp.zeros((4, 2)))
    except jaxtyping.TypeCheckError:
        continue
    raise AssertionError(f"{head} accepts targets of another shape")
"""


def test_arrays_have_the_shapes_of_the_annotations():
    """With beartype, which checks nothing in other runs."""
    subprocess.run([sys.executable, "-c", CHECKED], check=True, timeout=300)
