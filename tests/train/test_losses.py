"""The packed losses against one sequence for each state, computed without packing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import (
    CONFIG,
    assert_gradients_close,
    batch_of,
    mesh_of,
    policy_params,
    reward_params,
    rows_of,
    sequences,
)

from agentrm_jax.data.packing import only_labelled, pack
from agentrm_jax.model import llama
from agentrm_jax.model.heads import MSE, HLGauss
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.train import explicit, sft

CASES = sequences(12, seed=3)


def _states(shift):
    """One padded row for each labelled token t: the tokens before t + 1 - shift, and nothing else.

    Returns tokens [S, T], the index of each row's last token, and of each label (case, t).
    """
    labels = [(case, t) for case in CASES for t in np.flatnonzero(case.weights) if t >= shift]
    tokens = np.zeros((len(labels), 24), np.int32)
    for row, (case, t) in zip(tokens, labels, strict=True):
        row[: t + 1 - shift] = case.tokens[: t + 1 - shift]
    return tokens, np.array([t - shift for _, t in labels]), labels


def _last_hidden(trunk, tokens, last):
    ones = np.ones_like(tokens)
    positions = np.arange(tokens.shape[1], dtype=np.int32) * ones
    hidden = llama.forward(trunk, CONFIG, tokens, positions, ones)
    return hidden[np.arange(len(tokens)), last]


def _slow_values(params):
    tokens, last, labels = _states(shift=0)
    head = params["value_head"]
    values = _last_hidden(params["trunk"], tokens, last) @ head["kernel"] + head["bias"]
    targets = np.array([case.targets[t] for case, t in labels])
    weights = np.array([case.weights[t] for case, t in labels])
    return jnp.sum(weights * (values - targets) ** 2)


def _slow_cross_entropy(params):
    tokens, last, labels = _states(shift=1)  # nothing comes before a first token
    probabilities = jax.nn.softmax(_last_hidden(params, tokens, last) @ params["embed"].T)
    said = np.array([case.tokens[t] for case, t in labels])
    weights = np.array([case.weights[t] for case, t in labels])
    return -jnp.sum(weights * jnp.log(probabilities[np.arange(len(said)), said]))


@pytest.mark.parametrize(
    ("make_loss", "params_of", "slow"),
    [
        (sft.make_loss, policy_params, _slow_cross_entropy),
        (explicit.make_loss, reward_params, _slow_values),
    ],
    ids=["sft", "explicit"],
)
def test_packed_equals_one_sequence_per_state(make_loss, params_of, slow):
    batch = batch_of(pack(CASES, 48))
    packed = jax.jit(jax.value_and_grad(make_loss(CONFIG), has_aux=True))
    (loss, _), grads = packed(params_of(), batch)
    slow_loss, slow_grads = jax.jit(jax.value_and_grad(slow))(params_of())
    assert loss == pytest.approx(float(slow_loss), rel=1e-5)
    assert_gradients_close(grads, slow_grads, 1e-5)


def test_the_loss_of_other_tokens_equals_that_of_each_sequence_alone():
    """Every token with a predecessor counts once: with its weight, or with that of observations."""
    factor, params = 0.3, policy_params()
    batch = batch_of(pack(CASES, 48))
    (loss, sums), _ = _differentiated(sft.make_loss(CONFIG, observation_loss=factor), params, batch)
    replies, others = 0.0, []
    for case in CASES:
        tokens = jnp.asarray(case.tokens)[None]
        positions = jnp.arange(tokens.shape[1])[None]
        hidden = llama.forward(params, CONFIG, tokens, positions, jnp.ones_like(tokens))
        log_probs = jax.nn.log_softmax(llama.logits(params, CONFIG, hidden[0]))
        for t in range(1, len(case.tokens)):
            lost = -float(log_probs[t - 1, case.tokens[t]])
            replies += float(case.weights[t]) * lost
            if case.weights[t] == 0:
                others.append(lost)
    assert len(others) == float(sums["observation_tokens"]) > 0
    assert float(loss) == pytest.approx(replies + factor * sum(others), rel=1e-5)
    means = {name: float(value / sums["weight"]) for name, value in sums.items()}
    described = sft.describe(means)
    assert described["observation_loss"] == pytest.approx(np.mean(others), rel=1e-5)
    assert "observation_tokens" not in described


@pytest.mark.parametrize(
    ("make_loss", "params_of"),
    [(sft.make_loss, policy_params), (explicit.make_loss, reward_params)],
    ids=["sft", "explicit"],
)
def test_eight_devices_give_the_same_gradients(make_loss, params_of):
    mesh = mesh_of(2, 2, 2)
    batch = batch_of(pack(sequences(24), 32))
    batch = {name: value[:8] for name, value in batch.items()}
    assert len(batch["tokens"]) == 8
    rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))

    def gradients(mesh, batch):
        loss = make_loss(
            CONFIG, ForwardOptions(mesh=mesh, remat="block" if mesh is not None else "none")
        )
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params_of(mesh), batch)

    (loss, sums), grads = gradients(mesh, jax.device_put(batch, rows))
    (one_loss, one_sums), one_grads = gradients(None, batch)
    assert float(loss) == pytest.approx(float(one_loss), rel=1e-5)
    for name, value in one_sums.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-4)
    assert_gradients_close(grads, one_grads, 2e-5)


def _differentiated(loss_fn, params, batch):
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch)


@pytest.mark.parametrize("remat", ["none", "block", "dots"])
@pytest.mark.parametrize("head", [MSE(), HLGauss(bins=7)], ids=["mse", "gauss"])
def test_the_last_layer_of_labelled_tokens_alone_gives_the_same(remat, head):
    """Rows of several sequences and unequal numbers of labels, the first token among them."""
    rows = pack(CASES, 48)
    least, most = np.sort((rows.weights != 0).sum(axis=1))[[0, -1]]
    assert least < most
    loss_fn = explicit.make_loss(CONFIG, ForwardOptions(remat=remat), head=head)
    params = reward_params(head=head)
    (loss, sums), grads = _differentiated(loss_fn, params, batch_of(only_labelled(rows)))
    (wanted, wanted_sums), wanted_grads = _differentiated(loss_fn, params, batch_of(rows))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    for name, value in wanted_sums.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5)
    assert_gradients_close(grads, wanted_grads, 1e-5)


@pytest.mark.parametrize("chunks", [4, 5])  # 5 does not divide the vocabulary of 64
def test_chunks_of_the_vocabulary_change_memory_only(chunks):
    batch = batch_of(pack(CASES, 48))
    (loss, sums), grads = _differentiated(
        sft.make_loss(CONFIG, ForwardOptions(vocab_chunks=chunks)), policy_params(), batch
    )
    (whole, whole_sums), whole_grads = _differentiated(
        sft.make_loss(CONFIG), policy_params(), batch
    )
    assert float(loss) == pytest.approx(float(whole), rel=1e-6)
    assert jax.device_get(sums) == jax.device_get(whole_sums)
    assert_gradients_close(grads, whole_grads, 1e-5)


def test_chunks_of_the_vocabulary_never_make_all_logits():
    batch = batch_of(pack(CASES, 48))
    logits = f"tensor<{len(batch['tokens'])}x47x{CONFIG.vocab_size}xf32>"

    def program(chunks):
        step = jax.grad(sft.make_loss(CONFIG, ForwardOptions(vocab_chunks=chunks)), has_aux=True)
        return jax.jit(step).lower(policy_params(), batch).as_text()

    assert logits in program(1)
    assert logits not in program(4)


@pytest.mark.parametrize(
    ("make_loss", "params_of"),
    [(sft.make_loss, policy_params), (explicit.make_loss, reward_params)],
    ids=["sft", "explicit"],
)
def test_bfloat16_has_float32_gradients_of_the_rounded_model(make_loss, params_of):
    batch = batch_of(pack(CASES, 48))
    params = params_of()
    head = params.pop("value_head", None)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    if head is not None:
        params, rounded = {**params, "value_head": head}, {**rounded, "value_head": head}
    loss_fn = make_loss(CONFIG, ForwardOptions(dtype=jnp.bfloat16))
    (loss, _), grads = _differentiated(loss_fn, params, batch)
    (wanted, _), wanted_grads = _differentiated(make_loss(CONFIG), rounded, batch)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert float(loss) == pytest.approx(float(wanted), rel=2e-2)
    assert_gradients_close(grads, wanted_grads, 0.05)


def test_without_a_head_bias_all_else_is_trained_alike():
    params, batch = reward_params(), batch_of(rows_of(6))
    gradients = [
        _differentiated(explicit.make_loss(CONFIG, head_bias=with_bias), params, batch)[1]
        for with_bias in (True, False)
    ]
    biases = [float(g["value_head"].pop("bias")) for g in gradients]
    assert biases[0] != 0.0 == biases[1]
    chex.assert_trees_all_equal(*gradients)


def test_accuracy_counts_weighted_right_tokens():
    params = policy_params()
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, CONFIG.vocab_size, (1, 9)).astype(np.int32)
    ones = np.ones((1, 9), np.int32)
    positions = np.arange(9, dtype=np.int32)[None]
    hidden = llama.forward(params, CONFIG, tokens, positions, ones)
    best = np.asarray(llama.logits(params, CONFIG, hidden)).argmax(-1)[0]
    weights = np.array([[5, 1, 2, 0, 4, 0, 0, 3, 1]], np.float32)
    right = best[:-1] == tokens[0, 1:]
    batch = {"tokens": tokens, "positions": positions, "segments": ones, "weights": weights}
    _, sums = sft.make_loss(CONFIG)(params, batch)
    assert sums["weight"] == 11.0  # the first token has nothing before it
    assert sums["accuracy"] == (weights[0, 1:] * right).sum()


def test_correlation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    values, weights = rng.random(50), rng.integers(1, 4, 50)
    targets = 0.5 * values + 0.2 * rng.random(50)
    products = {
        "value": values,
        "target": targets,
        "value_squared": values**2,
        "target_squared": targets**2,
        "value_target": values * targets,
        "loss": (values - targets) ** 2,
        "squared_error": (values - targets) ** 2,
    }
    means = {name: float(np.average(x, weights=weights)) for name, x in products.items()}
    row = explicit.describe({**means, "grad_norm": 1.0})
    repeated = np.corrcoef(np.repeat(values, weights), np.repeat(targets, weights))[0, 1]
    assert row["correlation"] == pytest.approx(repeated)
    constant = {**means, "value_squared": means["value"] ** 2}
    assert explicit.describe({**constant, "grad_norm": 1.0})["correlation"] == 0.0
