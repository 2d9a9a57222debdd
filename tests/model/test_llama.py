"""Every part of the forward pass against transformers' (goldens, and live where torch is)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FAMILIES, GOLDENS, TOKENS, params_of, tensors_of

from agentrm_jax.model import llama
from agentrm_jax.model.attention import dense_attention

TOLERANCE = 1e-4  # float32, with logits of up to about 6


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def config(family):
    return FAMILIES[family]


@pytest.fixture
def golden(family):
    with np.load(GOLDENS / f"{family}.npz") as file:
        return dict(file)


@pytest.fixture
def params(config):
    return jax.tree.map(jnp.asarray, params_of(config, tensors_of(config)))


@pytest.fixture
def rotation(config):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    return llama.rope(positions, config)


def causal(q, k, v):
    mask = jnp.broadcast_to(
        jnp.tril(jnp.ones((q.shape[1],) * 2, bool)), (len(q), *q.shape[1:2] * 2)
    )
    return dense_attention(q, k, v, mask), None


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, tokens, positions, segments, config):
    hidden = llama.forward(params, config, tokens, positions, segments)
    return llama.logits(params, config, hidden)


def unpacked(tokens):
    """Rows of one sequence each: tokens, positions, segments."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(positions)


def test_the_goldens_say_something(golden):
    assert 2 < np.abs(golden["logits"]).max() < 30
    assert np.abs(golden["attention"]).mean() > 0.1
    assert np.abs(golden["mlp"]).mean() > 0.1


def test_embed(params, golden):
    np.testing.assert_array_equal(llama.embed(params, TOKENS), golden["embed"])


def test_rms_norm(config, params, golden):
    weight = params["layers"]["attention_norm"][0]
    close(llama.rms_norm(golden["embed"], weight, config.norm_eps), golden["norm"])


def test_rms_norm_computes_in_float32():
    x = jnp.full((1, 64), 300.0, jnp.float16)  # its square is no float16
    out = llama.rms_norm(x, jnp.ones(64, jnp.float16), 1e-5)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out, 1.0, rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 5, 64), (3, 64), (2, 5, 4, 64)])  # tokens, ends, heads
def test_gradient_of_a_norm_is_that_of_its_formula(shape):
    x, seen = jax.random.normal(jax.random.key(0), (2, *shape))
    weight = jax.random.normal(jax.random.key(1), shape[-1:])

    def formula(x, weight):
        return weight * x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    def gradients(norm):
        return jax.jit(jax.grad(lambda x, w: jnp.sum(seen * norm(x, w)), argnums=(0, 1)))(x, weight)

    found = gradients(lambda x, w: llama.rms_norm(x, w, 1e-5))
    for own, expected in zip(found, gradients(formula), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_an_mlp_is_that_of_its_formula(config, params):
    weights = llama.unstacked(params)["layers"][0]
    x, seen = jax.random.normal(jax.random.key(0), (2, 2, 5, config.d_model))

    def formula(weights, x):
        x = llama.rms_norm(x, weights["mlp_norm"], config.norm_eps)
        gate, up = (x @ weights[name].T for name in ("gate", "up"))
        return (gate / (1 + jnp.exp(-gate)) * up) @ weights["down"].T

    def gradients(mlp):
        return jax.jit(jax.grad(lambda w, x: jnp.sum(seen * mlp(w, x)), argnums=(0, 1)))(weights, x)

    found, expected = (gradients(mlp) for mlp in (lambda w, x: llama.mlp(w, config, x), formula))
    for own, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_rope(config, golden):
    sin, cos = jax.jit(llama.rope, static_argnums=1)(jnp.arange(512)[None, ::7], config)
    close(sin[0], golden["sin"])
    close(cos[0], golden["cos"])


def test_rope_scaling_changes_low_frequencies_only():
    scaled, plain = FAMILIES["llama31"], FAMILIES["wide_heads"]
    ones = jnp.ones((1, 1), jnp.int32)
    angles = [jnp.arctan2(*llama.rope(ones, c))[0, 0] for c in (scaled, plain)]
    ratio = np.asarray(angles[1] / angles[0])
    assert ratio[0] == 1.0
    np.testing.assert_allclose(ratio[-1], scaled.rope_scaling.factor, rtol=1e-5)
    assert (np.diff(ratio) > -1e-5).all()


def test_rotation_keeps_what_positions_differ_by():
    """The score of a query and a key depends on their distance alone."""
    config = FAMILIES["mha"]
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 4, config.head_dim))

    @jax.jit
    def score(i, j):
        at = [llama.rope(jnp.full((1, 1), p), config) for p in (i, j)]
        return jnp.sum(llama.rotate(q, at[0]) * llama.rotate(k, at[1]), axis=-1)

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-5)
    assert np.abs(score(9, 4) - score(9, 5)).max() > 1e-2


def test_attention(config, params, golden, rotation):
    @jax.jit
    def attention(weights, x):
        attended, _ = causal(*llama.attention_input(weights, config, x, rotation))
        return jnp.einsum("btnh,dnh->btd", attended, weights["o"])

    close(attention(llama.unstacked(params)["layers"][0], golden["embed"]), golden["attention"])


def test_mlp(config, params, golden):
    x = golden["embed"] + golden["attention"]
    close(llama.mlp(llama.unstacked(params)["layers"][0], config, x), golden["mlp"])


def test_block(config, params, golden, rotation):
    block = jax.jit(lambda weights, x: llama.block(weights, config, x, rotation, causal)[0])
    x = golden["embed"]
    for l in range(config.num_layers):
        close(block(llama.unstacked(params)["layers"][l], x), golden[f"block_{l}"])
        x = golden[f"block_{l}"]


def test_final_norm_and_logits(config, params, golden):
    last = golden[f"block_{config.num_layers - 1}"]
    close(llama.final_norm(params, config, last), golden["final_norm"])
    close(llama.logits(params, config, golden["final_norm"]), golden["logits"])


def test_forward(config, params, golden):
    close(logits_of(params, *unpacked(TOKENS), config), golden["logits"])


def test_packed_sequences_do_not_see_each_other():
    """Two sequences and padding in one row: each as if it were alone."""
    config = FAMILIES["llama31"]
    params = params_of(config, tensors_of(config))
    lengths = (10, 7, 7)
    row = np.concatenate([TOKENS[0, :10], TOKENS[1, :7], np.zeros(7, np.int32)])
    positions = np.concatenate([np.arange(n) for n in lengths])
    segments = np.repeat([1, 2, 0], lengths)
    both = [np.stack([x, x]) for x in (row, positions, segments)]
    packed = logits_of(params, *both, config)[0]
    alone = logits_of(params, *unpacked(TOKENS), config)
    close(packed[:10], alone[0, :10])
    close(packed[10:17], alone[1, :7])


def test_low_precision_gives_float32_logits():
    config = FAMILIES["mha"]
    params = params_of(config, tensors_of(config))
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    out, exact = (logits_of(p, *unpacked(TOKENS), config) for p in (low, params))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=0.1 * np.abs(exact).max())


@pytest.mark.parity
def test_goldens_are_what_transformers_says_today(config, golden):
    pytest.importorskip("torch")
    from torch_cases import parts_of

    found = parts_of(config)
    assert found.keys() == golden.keys()
    for name, value in golden.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, rtol=2e-6, err_msg=name)


@pytest.mark.parity
def test_logits_equal_those_of_transformers(tmp_path, config, params):
    """On other weights and longer text than the goldens'."""
    pytest.importorskip("torch")
    from model_cases import write_directory
    from torch_cases import logits_of as theirs
    from torch_cases import read_by_transformers

    tensors = tensors_of(config, seed=1)
    tokens = np.random.RandomState(8).randint(0, 96, (2, 160)).astype(np.int32)
    model = read_by_transformers(write_directory(tmp_path / "model", config, tensors))
    close(logits_of(params_of(config, tensors), *unpacked(tokens), config), theirs(model, tokens))
