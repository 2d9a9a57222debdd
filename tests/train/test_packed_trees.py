"""Whole trees in a row against one sequence for each state, computed without packing."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_tree_cases import Letters, random_trees
from train_cases import CONFIG, assert_gradients_close, batch_of, mesh_of, reward_params

from agentrm_jax.core.records import Step, Transition
from agentrm_jax.data.chat import render
from agentrm_jax.data.packing import only_labelled, pack
from agentrm_jax.data.sequences import value_sequences
from agentrm_jax.data.tree_sequences import tree_sequences
from agentrm_jax.model import llama
from agentrm_jax.model.heads import MSE, HLGauss, Quantile, ValueHead
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.train import explicit


def made_by(make, trees, length):
    sequences, left_out = make(Letters(), lambda task: None, trees, length)
    assert left_out == 0
    return sequences


def states(trees):
    """Of each label: the tokens of the state, its value and its weight, both ends of a step."""
    found = []
    for tree in trees:
        for node, (value, weight) in enumerate(zip(tree.values, tree.weights, strict=True)):
            rendered, _ = render(Letters(), None, tree.state(node))
            ends = [rendered.state_ends[-1], *rendered.action_ends[-1:]]
            found += [(rendered.tokens[: end + 1], value, weight) for end in ends if weight]
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signed(ValueHead):
    """A head that the package does not have: the difference of two numbers, cubed error."""

    outputs = 2

    def value(self, outputs):
        return outputs[..., 0] - outputs[..., 1]

    def losses(self, outputs, targets):
        return jnp.abs(self.value(outputs) - targets) ** 3

    def initial_bias(self, mean):
        return np.array([mean, 0.0])


def slow_losses(outputs, targets, head):
    """Squared error; cross-entropy to a histogram made bin by bin; pinball loss level by level."""
    if isinstance(head, Signed):
        errors = [abs(a - b - target) for (a, b), target in zip(outputs, targets, strict=True)]
        return jnp.stack(errors) ** 3
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


def state_loss(params, trees, head):
    """A padded row for each state, and nothing but its last token is trained."""
    found = states(trees)
    tokens = np.zeros((len(found), max(len(own) for own, *_ in found)), np.int32)
    for row, (own, *_) in zip(tokens, found, strict=True):
        row[: len(own)] = own
    positions = np.arange(tokens.shape[1], dtype=np.int32) * np.ones_like(tokens)
    hidden = llama.forward(params["trunk"], CONFIG, tokens, positions, np.ones_like(tokens))
    last = hidden[np.arange(len(tokens)), [len(own) - 1 for own, *_ in found]]
    outputs = last @ params["value_head"]["kernel"].T + params["value_head"]["bias"]
    targets, weights = np.asarray([own[1:] for own in found], np.float32).T
    return jnp.sum(weights * slow_losses(outputs, targets, head))


def assert_equal_to_states(trees, make, length, head):
    batch = batch_of(only_labelled(pack(made_by(make, trees, length), length)))
    packed = jax.jit(jax.value_and_grad(explicit.make_loss(CONFIG, head=head), has_aux=True))
    (loss, sums), grads = packed(reward_params(head=head), batch)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(lambda p: state_loss(p, trees, head)))(
        reward_params(head=head)
    )
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert float(sums["weight"]) == pytest.approx(sum(weight for *_, weight in states(trees)))
    assert_gradients_close(grads, wanted_grads, 1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [400, 100], ids=["one row", "several"])
def test_trees_equal_one_sequence_per_state(seed, length):
    assert_equal_to_states(random_trees(seed), tree_sequences, length, MSE())


@pytest.mark.parametrize("make", [value_sequences, tree_sequences], ids=["paths", "trees"])
@pytest.mark.parametrize("head", [HLGauss(bins=7), Quantile(bins=7, huber=0.2), Signed()], ids=repr)
def test_other_heads_equal_one_sequence_per_state(make, head):
    assert_equal_to_states(random_trees(4), make, 200, head)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("length", [30, 60, 90, 1000])
def test_no_label_is_lost_however_long_rows_are(seed, length):
    trees = random_trees(seed, nodes=16)
    packed, left_out = tree_sequences(Letters(), lambda task: None, trees, length)
    single, also = value_sequences(Letters(), lambda task: None, trees, length)
    assert left_out == also
    assert all(len(sequence.tokens) <= length for sequence in packed)

    def labels(sequences):
        return sorted(
            (round(float(t), 6), round(float(w), 6))
            for s in sequences
            for t, w in zip(s.targets, s.weights, strict=True)
            if w > 0
        )

    assert labels(packed) == labels(single)
    assert sum(len(s.tokens) for s in packed) <= sum(len(s.tokens) for s in single)


def test_a_tree_reads_each_node_once():
    """Each node that has a label or is on the way to one."""
    [tree] = trees = random_trees(5, tasks=1)
    [sequence] = made_by(tree_sequences, trees, 1000)
    needed = {n for label in np.flatnonzero(tree.weights) for n in tree.path(int(label))} - {0}
    opening, _ = render(Letters(), None, tree.state(0))
    size = opening.state_ends[0] + 1
    for step in (tree.steps[node - 1] for node in needed):
        size += len(step.reply) + 1 + len(step.transition.observation) + 4
    assert len(sequence.tokens) == size
    assert sequence.subtree_ends[0] == size


def test_rows_of_a_tree_are_these():
    """A short tree by hand: root - 1 - (2, 3); 2 ends first, and the root has no label."""
    step = [
        Step(
            reply=reply,
            action="",
            transition=Transition(observation=reply, reward=0.0, done=False, success=False),
        )
        for reply in ("b", "c", "d")
    ]
    [tree] = random_trees(0, tasks=1, nodes=4)
    tree = dataclasses.replace(
        tree,
        first_observation="a",
        parents=(-1, 0, 1, 1),
        steps=tuple(step),
        values=(0.0, 0.25, 0.5, 0.75),
        weights=(0.0, 1.0, 0.5, 1.0),
    )
    [sequence] = made_by(tree_sequences, [tree], 100)
    # An opening of 5 tokens (1 2 a 3 4), then steps of 7: a reply, 5 6, 2 observation 3 4.
    a, b, c, d = 7, 8, 9, 10
    turn = [[x, 5, 6, 2, x, 3, 4] for x in (b, c, d)]
    assert sequence.tokens.tolist() == [1, 2, a, 3, 4, *turn[0], *turn[1], *turn[2]]
    assert sequence.positions.tolist() == [*range(19), *range(12, 19)]
    assert sequence.subtree_ends.tolist() == [26] * 12 + [19] * 7 + [26] * 7
    nonzero = {6: 1.0, 11: 1.0, 13: 0.5, 18: 0.5, 20: 1.0, 25: 1.0}
    assert {i: w for i, w in enumerate(sequence.weights.tolist()) if w} == nonzero
    values = {6: 0.25, 11: 0.25, 13: 0.5, 18: 0.5, 20: 0.75, 25: 0.75}
    assert {i: v for i, v in enumerate(sequence.targets.tolist()) if v} == values


def test_eight_devices_give_the_same_gradients():
    mesh = mesh_of(2, 2, 2)
    rows = only_labelled(pack(made_by(tree_sequences, random_trees(0, tasks=12), 150), 150))
    batch = {name: value[:8] for name, value in batch_of(rows).items()}
    assert len(batch["tokens"]) == 8
    placed = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))

    def gradients(mesh, batch):
        loss = explicit.make_loss(
            CONFIG, ForwardOptions(mesh=mesh, remat="block" if mesh is not None else "none")
        )
        return jax.jit(jax.grad(loss, has_aux=True))(reward_params(mesh), batch)[0]

    assert_gradients_close(
        gradients(mesh, jax.device_put(batch, placed)), gradients(None, batch), 2e-5
    )
