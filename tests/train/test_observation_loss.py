"""The loss of observations next to that of values, against each state read by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_tree_cases import Letters, random_trees
from train_cases import CONFIG, assert_gradients_close, batch_of, reward_params

from agentrm_jax.data.chat import render
from agentrm_jax.data.packing import only_labelled, pack
from agentrm_jax.data.sequences import value_sequences
from agentrm_jax.data.tree_sequences import tree_sequences
from agentrm_jax.model import llama
from agentrm_jax.train import explicit


def rows_of(trees, make, length=1500):
    sequences, left_out = make(Letters(), lambda task: None, trees, length)
    assert left_out == 0
    return only_labelled(pack(sequences, length), predicted=True)


def slow_cross_entropies(params, trees):
    """The cross-entropies of the last observation of each labelled state, state by state."""
    for tree in trees:
        for node in np.flatnonzero(tree.weights).tolist():
            if node == 0:
                continue
            rendered, _ = render(Letters(), None, tree.state(node))
            first, last = rendered.action_ends[-1] + 1, rendered.state_ends[-1]
            tokens = jnp.asarray(rendered.tokens)[None, : last + 1]
            positions = jnp.arange(last + 1)[None]
            hidden = llama.forward(
                params["trunk"], CONFIG, tokens, positions, jnp.ones_like(tokens)
            )
            log_probs = jax.nn.log_softmax(llama.logits(params["trunk"], CONFIG, hidden[0]))
            for index in range(first, last + 1):
                yield -log_probs[index - 1, rendered.tokens[index]]


@pytest.mark.parametrize("make", [value_sequences, tree_sequences])
def test_loss_and_gradients_equal_reading_each_state(make):
    trees, weight = random_trees(0, nodes=8), 0.3
    plain = explicit.make_loss(CONFIG)
    loss_fn = explicit.make_loss(CONFIG, observation_loss=weight)
    batch = batch_of(rows_of(trees, make))

    def wanted(params):
        parts = list(slow_cross_entropies(params, trees))
        return plain(params, batch)[0] + weight * sum(parts), (jnp.asarray(parts),)

    (loss, sums), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(reward_params(), batch)
    (slow, (parts,)), slow_grads = jax.value_and_grad(wanted, has_aux=True)(reward_params())
    assert float(loss) == pytest.approx(float(slow), rel=1e-5)
    assert_gradients_close(grads, slow_grads, 1e-5)
    means = {name: float(value / sums["weight"]) for name, value in sums.items()}
    described = explicit.describe({**means, "loss": float(loss)})
    assert described["observation_loss"] == pytest.approx(float(parts.mean()), rel=1e-5)


def test_long_branches_predict_each_observation_once():
    trees = random_trees(1, nodes=12)
    whole = rows_of(trees, value_sequences)
    cut = rows_of(trees, value_sequences, length=40)
    assert len(cut) > len(whole)
    assert whole.predicted.sum() == cut.predicted.sum() > 0


def test_rows_without_the_loss_hold_no_mask():
    sequences, _ = value_sequences(Letters(), lambda task: None, random_trees(2), 1500)
    assert "predicted" not in batch_of(only_labelled(pack(sequences, 1500)))
