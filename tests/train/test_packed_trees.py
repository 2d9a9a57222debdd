"""Whole trees in a row against one sequence for each state, computed without packing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_tree_cases import Letters, random_paths
from train_cases import CONFIG, assert_gradients_close, batch_of, mesh_of, reward_params

from agentrm_jax.data.chat import render
from agentrm_jax.data.packing import only_labelled, pack
from agentrm_jax.data.sequences import tree_sequences, value_sequences
from agentrm_jax.model import llama
from agentrm_jax.model.heads import MSE, HLGauss, Quantile
from agentrm_jax.train import explicit


def made_by(make, paths, length):
    sequences, left_out = make(Letters(), lambda task: None, paths, length)
    assert left_out == 0
    return sequences


def states(paths):
    """Of each label: the tokens of the state, its value and its weight, both ends of a step."""
    found = []
    for path in paths:
        rendered, _ = render(Letters(), None, path.trajectory)
        for number, (value, weight) in enumerate(zip(path.values, path.weights, strict=True)):
            ends = [rendered.state_ends[number], *rendered.action_ends[number - 1 : number]]
            found += [(rendered.tokens[: end + 1], value, weight) for end in ends if weight]
    return found


def slow_losses(outputs, targets, head):
    """Squared error; cross-entropy to a histogram made bin by bin; pinball loss level by level."""
    if head == MSE():
        return (outputs - targets) ** 2
    if isinstance(head, HLGauss):
        width = (head.high - head.low) / head.bins
        wanted = np.zeros((len(targets), head.bins))
        for row, target in zip(wanted, targets, strict=True):
            for k in range(head.bins):
                ends = (head.low + (k + side) * width for side in (0, 1))
                first, last = (math.erf((e - target) / (2**0.5 * head.sigma * width)) for e in ends)
                row[k] = last - first
            row /= row.sum()
        return -jnp.sum(wanted * jnp.log(jax.nn.softmax(outputs)), axis=1)
    total = 0.0
    for k in range(head.bins):
        error = targets - outputs[:, k]
        level = (2 * k + 1) / (2 * head.bins)
        near = error**2 / (2 * head.huber)
        far = jnp.abs(error) - head.huber / 2
        total += jnp.abs(level - (error < 0)) * jnp.where(jnp.abs(error) < head.huber, near, far)
    return total / head.bins


def state_loss(params, paths, head):
    """A padded row for each state, and nothing but its last token is trained."""
    found = states(paths)
    tokens = np.zeros((len(found), max(len(own) for own, *_ in found)), np.int32)
    for row, (own, *_) in zip(tokens, found, strict=True):
        row[: len(own)] = own
    positions = np.arange(tokens.shape[1], dtype=np.int32) * np.ones_like(tokens)
    hidden = llama.forward(params["trunk"], CONFIG, tokens, positions, np.ones_like(tokens))
    last = hidden[np.arange(len(tokens)), [len(own) - 1 for own, *_ in found]]
    outputs = last @ params["value_head"]["kernel"].T + params["value_head"]["bias"]
    targets, weights = np.asarray([own[1:] for own in found], np.float32).T
    return jnp.sum(weights * slow_losses(outputs, targets, head))


def assert_equal_to_states(paths, make, length, head):
    batch = batch_of(only_labelled(pack(made_by(make, paths, length), length)))
    packed = jax.jit(jax.value_and_grad(explicit.make_loss(CONFIG, head=head), has_aux=True))
    (loss, sums), grads = packed(reward_params(head=head), batch)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(lambda p: state_loss(p, paths, head)))(
        reward_params(head=head)
    )
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert float(sums["weight"]) == pytest.approx(sum(weight for *_, weight in states(paths)))
    assert_gradients_close(grads, wanted_grads, 1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [400, 100], ids=["one row", "several"])
def test_trees_equal_one_sequence_per_state(seed, length):
    assert_equal_to_states(random_paths(seed), tree_sequences, length, MSE())


@pytest.mark.parametrize("make", [value_sequences, tree_sequences], ids=["paths", "trees"])
@pytest.mark.parametrize("head", [HLGauss(bins=7), Quantile(bins=7, huber=0.2)], ids=repr)
def test_other_heads_equal_one_sequence_per_state(make, head):
    assert_equal_to_states(random_paths(4), make, 200, head)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("length", [30, 60, 90, 1000])
def test_no_label_is_lost_however_long_rows_are(seed, length):
    paths = random_paths(seed, nodes=16)
    trees, left_out = tree_sequences(Letters(), lambda task: None, paths, length)
    own, also = value_sequences(Letters(), lambda task: None, paths, length)
    assert left_out == also
    assert all(len(sequence.tokens) <= length for sequence in trees)

    def labels(sequences):
        return sorted(
            (round(float(t), 6), round(float(w), 6))
            for s in sequences
            for t, w in zip(s.targets, s.weights, strict=True)
            if w > 0
        )

    assert labels(trees) == labels(own)
    assert sum(len(s.tokens) for s in trees) <= sum(len(s.tokens) for s in own)


def test_a_tree_reads_each_node_once():
    paths = random_paths(5, tasks=1)
    [tree] = made_by(tree_sequences, paths, 1000)
    nodes = {
        (path.node_ids[: i + 1]): step
        for path in paths
        for i, step in enumerate((None, *path.trajectory.steps))
    }
    steps = [step for step in nodes.values() if step is not None]
    opening, _ = render(Letters(), None, paths[0].trajectory)
    size = opening.state_ends[0] + 1
    size += sum(len(s.reply) + 1 + len(s.transition.observation) + 4 for s in steps)
    assert len(tree.tokens) == size
    assert tree.until[0] == size


def test_eight_devices_give_the_same_gradients():
    mesh = mesh_of(2, 2, 2)
    rows = only_labelled(pack(made_by(tree_sequences, random_paths(0, tasks=12), 150), 150))
    batch = {name: value[:8] for name, value in batch_of(rows).items()}
    assert len(batch["tokens"]) == 8
    placed = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))

    def gradients(mesh, batch):
        loss = explicit.make_loss(CONFIG, mesh, remat="block" if mesh is not None else "none")
        return jax.jit(jax.grad(loss, has_aux=True))(reward_params(mesh), batch)[0]

    assert_gradients_close(
        gradients(mesh, jax.device_put(batch, placed)), gradients(None, batch), 2e-5
    )
