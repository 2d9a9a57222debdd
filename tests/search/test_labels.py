"""Labels against brute force over the stored iterations."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_game import game
from random_tree import RandomTree

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.trees import TreeRecord, TreeStore
from agentrm_jax.search.labels import LabelConfig, labelled_paths

FAITHFUL = LabelConfig(weighting="faithful", min_visits=3)
VISITS = LabelConfig(weighting="visits")


def record(seed: int, iterations: int) -> TreeRecord:
    grown = RandomTree(seed, 3).grown(iterations)
    return TreeRecord(task=game(0), first_observation="Go.", iterations=tuple(grown.records))


def brute_force(tree: TreeRecord):
    """(mean outcome, visits, terminal) of every node, by looking through all iterations."""
    nodes = {n.node: n for it in tree.iterations for n in it.nodes}
    found = {}
    for number in [0, *nodes]:
        outcomes = [it.outcome for it in tree.iterations if number in it.path]
        mean = sum(outcomes) / len(outcomes) if outcomes else 0.0
        terminal = number != 0 and nodes[number].step.transition.done
        found[number] = (mean, len(outcomes), terminal)
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), iterations=st.integers(0, 25))
@pytest.mark.parametrize("config", [FAITHFUL, VISITS], ids=["faithful", "visits"])
def test_labels_equal_brute_force(config, seed, iterations):
    tree = record(seed, iterations)
    nodes = {n.node: n for it in tree.iterations for n in it.nodes}
    paths = list(labelled_paths(tree, config))
    labels: dict[int, tuple[float, int, float]] = {}
    for path in paths:
        assert path.num_labels > 0
        assert path.node_ids[0] == 0
        for parent, child in itertools.pairwise(path.node_ids):
            assert nodes[child].parent == parent
        assert [nodes[n].step for n in path.node_ids[1:]] == list(path.trajectory.steps)
        assert path.node_ids[-1] not in {n.parent for n in nodes.values()}  # it ends in a leaf
        for number, value, visits, weight in zip(
            path.node_ids, path.values, path.visit_counts, path.weights, strict=True
        ):
            if weight > 0:
                assert number not in labels  # every label is carried once
                labels[number] = (value, visits, weight)
    expected = {}
    for number, (mean, visits, terminal) in brute_force(tree).items():
        if config is FAITHFUL and visits >= 3:
            expected[number] = (pytest.approx(mean), visits, 1.0)
        if config is VISITS and visits >= 1:
            weight = 1.0 if terminal else pytest.approx(visits / (visits + 2))
            expected[number] = (pytest.approx(mean), visits, weight)
    assert labels == expected


def test_stored_trees_give_the_same_labels(tmp_path):
    """They are computed from the store alone, in its order, also from trees that ended early."""
    tree = record(7, 12)
    store = TreeStore(tmp_path)
    store.begin(tree.task, tree.first_observation)
    for iteration in tree.iterations:
        iteration = type(iteration)(
            task_id=tree.task.task_id, iteration=iteration.iteration, nodes=iteration.nodes,
            path=iteration.path, outcome=iteration.outcome,
        )  # fmt: skip
        store.append(iteration)
    store.finish(tree.task.task_id, error="the game broke")
    store.close()
    [stored] = TreeStore.read(tmp_path).values()
    assert list(labelled_paths(stored, VISITS)) == list(labelled_paths(tree, VISITS))


def test_config_names_what_is_wrong():
    with pytest.raises(UserError, match=r"label\.min_visits"):
        LabelConfig(min_visits=0)
    with pytest.raises(UserError, match=r"label\.weighting: .* 'mean'"):
        LabelConfig(weighting="mean")
