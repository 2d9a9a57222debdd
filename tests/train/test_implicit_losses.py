"""The packed implicit losses against one trajectory at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_tree_cases import Letters, random_trees
from train_cases import CONFIG, assert_gradients_close, batch_of, mesh_of, policy_params

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import render
from agentrm_jax.data.packing import pack
from agentrm_jax.data.sequences import outcome_sequences, pair_sequences
from agentrm_jax.model import llama
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.train import implicit
from agentrm_jax.train.implicit import ImplicitConfig

LENGTH = 192
BETA = 0.3


def _trajectories(seed=0):
    """Some with outcomes in [0, 1], the last step of each pays it."""
    rng = np.random.default_rng(seed)
    found = []
    for tree in random_trees(seed, nodes=9):
        for leaf in sorted(set(range(1, 9)) - set(tree.parents)):
            state = tree.state(leaf)
            *before, last = state.steps
            paid = dataclasses.replace(
                last.transition, reward=float(rng.integers(0, 5) / 4), done=True
            )
            last = dataclasses.replace(last, transition=paid)
            found.append(dataclasses.replace(state, steps=(*before, last)))
    return found


TRAJECTORIES = _trajectories()
PAIRS = [(TRAJECTORIES[0], TRAJECTORIES[1]), (TRAJECTORIES[-1], TRAJECTORIES[-2])]


def _params(scale):
    """The policy, moved a little: a model and its reference must differ."""
    params = policy_params()
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(int(100 * scale)), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


MODEL, REFERENCE = _params(0.05), _params(0.02)


def _slow_reward(params, trajectory):
    """beta times the log-ratios of all reply tokens, one conversation by itself."""
    rendered, _ = render(Letters(), None, trajectory)
    tokens = rendered.tokens[None]
    ones = np.ones_like(tokens)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    said = np.concatenate([np.arange(*span) for span in rendered.reply_spans])
    total = 0.0
    for sign, side in ((1, params), (-1, REFERENCE)):
        hidden = llama.forward(side, CONFIG, tokens, positions, ones)
        log_probs = jax.nn.log_softmax(llama.logits(side, CONFIG, hidden)[0])
        total += sign * log_probs[said - 1, tokens[0, said]].sum()
    return BETA * total


def _slow_loss(name, params):
    if name == "dpo":
        margins = [_slow_reward(params, a) - _slow_reward(params, b) for a, b in PAIRS]
        return -sum(jnp.log(jax.nn.sigmoid(margin)) for margin in margins)
    total = 0.0
    for trajectory in TRAJECTORIES:
        reward, outcome = _slow_reward(params, trajectory), trajectory.outcome
        if name == "mse":
            total += (reward - outcome) ** 2
        else:
            p = jax.nn.sigmoid(reward)
            total += -outcome * jnp.log(p) - (1 - outcome) * jnp.log(1 - p)
    return total


def _batch(name):
    if name == "dpo":
        sequences, left_out = pair_sequences(Letters(), lambda task: None, PAIRS, LENGTH)
    else:
        sequences, left_out = outcome_sequences(Letters(), lambda task: None, TRAJECTORIES, LENGTH)
    assert left_out == 0
    rows = pack(sequences, LENGTH)
    found = implicit.reference_log_probs(REFERENCE, CONFIG, rows, 2, ForwardOptions(mesh=mesh_of()))
    return batch_of(implicit.with_reference(rows, found))


@pytest.mark.parametrize("name", ["mse", "cross_entropy", "dpo"])
def test_packed_equals_one_trajectory_at_a_time(name):
    loss_fn = implicit.make_loss(ImplicitConfig(loss=name, beta=BETA), CONFIG)
    (loss, sums), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(MODEL, _batch(name))
    slow, slow_grads = jax.value_and_grad(lambda params: _slow_loss(name, params))(MODEL)
    assert float(sums["weight"]) == len(PAIRS if name == "dpo" else TRAJECTORIES)
    assert float(loss) == pytest.approx(float(slow), rel=1e-5)
    assert_gradients_close(grads, slow_grads, 1e-4 if name == "dpo" else 2e-5)


def test_a_policy_rewards_nothing_beyond_itself():
    loss_fn = implicit.make_loss(ImplicitConfig(), CONFIG)
    loss, sums = jax.jit(loss_fn)(REFERENCE, _batch("mse"))
    assert float(sums["value"]) == pytest.approx(0.0, abs=1e-4)
    outcomes = [trajectory.outcome for trajectory in TRAJECTORIES]
    assert float(sums["target"]) == pytest.approx(sum(outcomes))
    assert float(loss) == pytest.approx(sum(x**2 for x in outcomes), rel=1e-4)


def test_a_long_trajectory_loses_its_oldest_steps():
    longest = max(TRAJECTORIES, key=lambda trajectory: len(trajectory.steps))
    whole, _ = render(Letters(), None, longest)
    limit = len(whole.tokens) - 1
    [sequence], left_out = outcome_sequences(Letters(), lambda task: None, [longest], limit)
    rendered, dropped = render(Letters(), None, longest, limit)
    assert left_out == dropped > 0
    assert sequence.tokens.tolist() == rendered.tokens.tolist()
    assert sequence.targets[0] == np.float32(longest.outcome)


@pytest.mark.parametrize(
    ("values", "key"),
    [({"loss": "hinge"}, "loss must be one of"), ({"beta": 0.0}, "beta must be above 0")],
)
def test_bad_values_name_the_key(values, key):
    with pytest.raises(UserError, match=key):
        ImplicitConfig(**values)
