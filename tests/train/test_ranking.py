"""The ranking loss between siblings against a double loop over the nodes of trees."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_tree_cases import Letters, random_trees
from train_cases import CONFIG, assert_gradients_close, batch_of, mesh_of, reward_params

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import render
from agentrm_jax.data.packing import only_labelled, pack
from agentrm_jax.data.sequences import value_sequences
from agentrm_jax.data.tree_sequences import tree_sequences
from agentrm_jax.model import llama
from agentrm_jax.model.heads import MSE, Quantile
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.runtime.metrics import MetricWriter, read_metrics
from agentrm_jax.train import explicit
from agentrm_jax.train.fit import FitConfig, FitInputs, fit
from agentrm_jax.train.optimizer import OptimizerConfig
from agentrm_jax.train.ranking import RankingConfig, count_pairs
from agentrm_jax.train.trainable import Trainable

MAKES = {"paths": value_sequences, "trees": tree_sequences}


def rows_of(trees, make, length):
    sequences, left_out = MAKES[make](Letters(), lambda task: None, trees, length)
    assert left_out == 0
    return only_labelled(pack(sequences, length), siblings=True)


def ends_of(trees):
    """By (tree, node, end): tokens up to the end of the labelled step."""
    found = {}
    for t, tree in enumerate(trees):
        for node in np.flatnonzero(tree.weights).tolist():
            rendered, _ = render(Letters(), None, tree.state(node))
            ends = {"observation": rendered.state_ends[-1]}
            if node:
                ends["action"] = rendered.action_ends[-1]
            for end, last in ends.items():
                found[t, node, end] = rendered.tokens[: last + 1]
    return found


def slow_pairs(trees, ends):
    """(better, worse, weight) of each pair of siblings, as keys of `ends_of`."""
    for t, tree in enumerate(trees):
        for a, b in itertools.permutations(range(1, len(tree.parents)), 2):
            weight = tree.weights[a] * tree.weights[b]
            siblings = tree.parents[a] == tree.parents[b]
            if siblings and weight and tree.values[a] > tree.values[b]:
                for end in ("action", "observation"):
                    if ends in (end, "both"):
                        yield (t, a, end), (t, b, end), weight


def slow_loss(params, trees, head, ranking):
    """The loss, and the values of `ends_of`: every end is read by itself, without packing."""
    ends = ends_of(trees)
    tokens = np.zeros((len(ends), max(map(len, ends.values()))), np.int32)
    for row, own in zip(tokens, ends.values(), strict=True):
        row[: len(own)] = own
    positions = np.arange(tokens.shape[1], dtype=np.int32) * np.ones_like(tokens)
    hidden = llama.forward(params["trunk"], CONFIG, tokens, positions, np.ones_like(tokens))
    last = hidden[np.arange(len(tokens)), [len(own) - 1 for own in ends.values()]]
    outputs = last @ params["value_head"]["kernel"].T + params["value_head"]["bias"]
    values, number = head.value(outputs), {key: i for i, key in enumerate(ends)}
    targets = jnp.asarray([trees[t].values[node] for t, node, _ in ends])
    weights = jnp.asarray([trees[t].weights[node] for t, node, _ in ends])
    better, worse, pair_weights = zip(*slow_pairs(trees, ranking.ends), strict=True)
    better, worse = (jnp.asarray([number[key] for key in side]) for side in (better, worse))
    chances = 1 / (1 + jnp.exp(-(values[better] - values[worse]) / ranking.temperature))
    ranked = jnp.sum(jnp.asarray(pair_weights) * -jnp.log(chances))
    return jnp.sum(weights * head.losses(outputs, targets)) + ranking.weight * ranked, values


@pytest.mark.parametrize(
    ("seed", "make", "ends", "head"),
    [
        (0, "trees", "both", MSE()),
        (1, "trees", "action", Quantile(bins=5, huber=0.2)),
        (2, "paths", "observation", MSE()),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_loss_and_gradients_equal_a_double_loop(seed, make, ends, head):
    trees = random_trees(seed, nodes=16)
    ranking = RankingConfig(weight=0.7, temperature=0.3, ends=ends)
    rows = rows_of(trees, make, 1500)
    assert len(rows) == 1  # no pair is separated
    loss_fn = explicit.make_loss(CONFIG, head=head, ranking=ranking)
    (loss, sums), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        reward_params(head=head), batch_of(rows)
    )
    (wanted, values), wanted_grads = jax.jit(
        jax.value_and_grad(lambda params: slow_loss(params, trees, head, ranking), has_aux=True)
    )(reward_params(head=head))
    pairs = list(slow_pairs(trees, ends))
    assert len(pairs) >= 5
    assert count_pairs(ranking, rows) == (len(pairs), 0)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert_gradients_close(grads, wanted_grads, 1e-5)
    means = {name: float(value / sums["weight"]) for name, value in sums.items()}
    described = explicit.describe({**means, "loss": float(loss / sums["weight"])})
    value_of = dict(zip(ends_of(trees), values.tolist(), strict=True))
    total = ordered = losses = 0.0
    for better, worse, weight in pairs:
        difference = value_of[better] - value_of[worse]
        total += weight
        ordered += weight * (difference > 0)
        losses += weight * np.log1p(np.exp(-difference / ranking.temperature))
    assert 0 < ordered < total
    assert described["sibling_accuracy"] == pytest.approx(ordered / total, rel=1e-5)
    assert described["ranking_loss"] == pytest.approx(losses / total, rel=1e-5)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("length", [40, 70, 150, 900])
def test_pairs_that_packing_separates_are_counted(make, length):
    trees, ranking = random_trees(6, nodes=16, tasks=6), RankingConfig(weight=1.0)
    rows = rows_of(trees, make, length)
    together, separated = count_pairs(ranking, rows)
    assert together + separated == len(list(slow_pairs(trees, "both")))
    slow = 0
    for siblings, targets, weights in zip(rows.siblings, rows.targets, rows.weights, strict=True):
        for i, j in itertools.combinations(range(len(siblings)), 2):
            labelled = weights[i] > 0 and weights[j] > 0
            slow += labelled and siblings[i] == siblings[j] > 0 and targets[i] != targets[j]
    assert together == slow
    if length == 40:
        assert separated > 0


def test_trees_keep_siblings_together():
    trees, ranking = random_trees(7, nodes=20, tasks=8), RankingConfig(weight=1.0)
    kept = {make: count_pairs(ranking, rows_of(trees, make, 300)) for make in MAKES}
    assert kept["trees"][1] == 0
    assert kept["paths"][1] > 0


def test_without_a_weight_the_loss_is_the_same_program():
    trees = random_trees(8)
    plain = only_labelled(pack(tree_sequences(Letters(), lambda task: None, trees, 400)[0], 400))
    assert plain.siblings is None
    programs = [
        jax.jit(jax.grad(loss, has_aux=True)).lower(reward_params(), batch_of(plain)).as_text()
        for loss in (
            explicit.make_loss(CONFIG),
            explicit.make_loss(CONFIG, ranking=RankingConfig(weight=0.0, ends="action")),
        )
    ]
    assert programs[0] == programs[1]


def test_eight_devices_give_the_same_gradients():
    mesh = mesh_of(2, 2, 2)
    rows = rows_of(random_trees(0, tasks=12), "trees", 150)
    batch = {name: value[:8] for name, value in batch_of(rows).items()}
    placed = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))

    def gradients(mesh, batch):
        loss = explicit.make_loss(
            CONFIG, ForwardOptions(mesh=mesh), ranking=RankingConfig(weight=2.0)
        )
        return jax.jit(jax.grad(loss, has_aux=True))(reward_params(mesh), batch)[0]

    assert_gradients_close(
        gradients(mesh, jax.device_put(batch, placed)), gradients(None, batch), 2e-5
    )


def test_training_orders_siblings_and_reports_it(tmp_path):
    ranking = RankingConfig(weight=3.0)
    rows = rows_of(random_trees(9, tasks=3), "trees", 200)
    mesh = mesh_of()
    loss = explicit.make_loss(CONFIG, ForwardOptions(mesh=mesh), ranking=ranking)
    fit(
        FitInputs(
            model=Trainable(params=reward_params(mesh), loss_fn=loss),
            rows=rows,
            config=FitConfig(
                num_updates=40, batch_size=2, accumulation=2, length=200, checkpoint_every=40
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2),
            directory=tmp_path / "training",
            mesh=mesh,
            seed=1,
            metrics=MetricWriter(tmp_path / "metrics.jsonl", "train-rm"),
            held_out=rows_of(random_trees(10, tasks=2), "trees", 200),
            describe=explicit.describe,
        )
    )
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert first["sibling_accuracy"] < 0.9 < 0.95 < last["sibling_accuracy"]
    assert last["ranking_loss"] < first["ranking_loss"]
    assert {"held_out_ranking_loss", "held_out_sibling_accuracy"} <= set(last)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"ends": "start"}, "ends must be one of both, action, observation"),
    ],
)
def test_bad_values_name_the_key(values, message):
    with pytest.raises(UserError, match=message):
        RankingConfig(**values)
