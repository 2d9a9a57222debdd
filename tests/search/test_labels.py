"""Labels against brute force over the stored iterations."""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_game import game
from random_tree import RandomTree

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Trajectory, Transition
from agentrm_jax.data.trees import BackupRecord, IterationRecord, NodeRecord, TreeRecord, TreeStore
from agentrm_jax.search.labels import (
    LabelConfig,
    chosen_trees,
    label,
    label_trajectories,
    label_tree,
    times_chosen,
)

FAITHFUL = LabelConfig(weighting="faithful", min_visits=3)
VISITS = LabelConfig(weighting="visits")


def record(seed: int, iterations: int) -> TreeRecord:
    grown = RandomTree(seed, 3).grown(iterations)
    return TreeRecord(task=game(0), first_observation="Go.", iterations=tuple(grown.records))


def brute_force(tree: TreeRecord, gamma: float = 1.0, of=statistics.fmean):
    """(mean return, visits, terminal) of every node, by looking through all iterations."""
    nodes = {n.node: n for it in tree.iterations for n in it.nodes}
    found = {}
    for number in [0, *nodes]:
        outcomes = [
            it.outcome * gamma ** (len(it.path) - 1 - it.path.index(number))
            for it in tree.iterations
            if number in it.path
        ]
        mean = of(outcomes) if outcomes else 0.0
        terminal = number != 0 and nodes[number].step.transition.done
        found[number] = (mean, len(outcomes), terminal)
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), iterations=st.integers(0, 25))
@pytest.mark.parametrize("config", [FAITHFUL, VISITS], ids=["faithful", "visits"])
def test_labels_equal_brute_force(config, seed, iterations):
    tree = record(seed, iterations)
    nodes = {n.node: n for it in tree.iterations for n in it.nodes}
    labelled = label_tree(tree, config)
    assert (labelled.task, labelled.first_observation) == (tree.task, tree.first_observation)
    assert len(labelled.parents) == 1 + len(nodes)
    for number, node in nodes.items():
        assert labelled.parents[number] == node.parent
        assert labelled.steps[number - 1] is node.step
        assert labelled.state(number) == tree.states()[number]
    labels: dict[int, tuple[float, int, float]] = {}
    leaves = []
    for branch in labelled.branches():
        assert any(branch.weights)
        assert branch.nodes[0] == 0
        for parent, child in itertools.pairwise(branch.nodes):
            assert nodes[child].parent == parent
        leaves.append(branch.nodes[-1])
        for number, weight in zip(branch.nodes, branch.weights, strict=True):
            if weight > 0:
                assert number not in labels  # each label is held by one branch
                assert weight == labelled.weights[number]
                value, visits = labelled.values[number], labelled.visit_counts[number]
                labels[number] = (value, visits, weight)
    assert leaves == sorted(set(leaves) - {n.parent for n in nodes.values()})
    assert len(labels) == labelled.num_labels
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
    assert label([stored], VISITS) == label([tree], VISITS)


def counted(tree: TreeRecord, seed: int) -> TreeRecord:
    """The tree with random multiplicities."""
    rng = np.random.default_rng(seed)
    iterations = (
        dataclasses.replace(
            it,
            nodes=tuple(
                dataclasses.replace(n, multiplicity=int(rng.integers(1, 5))) for n in it.nodes
            ),
        )
        for it in tree.iterations
    )
    return dataclasses.replace(tree, iterations=tuple(iterations))


def ways(number, children, share):
    """All paths from a node to an end that was reached, with their probabilities."""
    if not children[number]:
        yield [number], 1.0
    for child in children[number]:
        for path, probability in ways(child, children, share):
            yield [number, *path], share[child] * probability


def brute_force_targets(tree, known, counts, td_lambda, gamma=1.0):
    """V + sum of (gamma lambda)^l (gamma V(next) - V) along each path (GAE), in the mean over
    paths."""
    children = {number: [] for number in known}
    for node in (n for it in tree.iterations for n in it.nodes):
        if known[node.node][1]:
            children[node.parent].append(node.node)
    share = {}
    for own in children.values():
        share |= {child: counts[child] / sum(counts[c] for c in own) for child in own}
    found = {}
    for number in known:
        total = 0.0
        for path, probability in ways(number, children, share):
            value = [known[n][0] for n in path]
            steps = [
                (gamma * td_lambda) ** l * (gamma * b - a)
                for l, (a, b) in enumerate(itertools.pairwise(value))
            ]
            total += probability * (value[0] + sum(steps))
        found[number] = total
    return found


def targets_of(tree, config):
    return dict(enumerate(label_tree(tree, config).values))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    iterations=st.integers(1, 20),
    td_lambda=st.one_of(st.just(0.0), st.floats(1e-6, 1.0)),
    gamma=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_lambda_targets_equal_brute_force(seed, iterations, td_lambda, gamma):
    tree = counted(record(seed, iterations), seed)
    known = brute_force(tree, gamma)
    wanted = brute_force_targets(tree, known, times_chosen(tree), td_lambda, gamma)
    found = targets_of(tree, LabelConfig(target="td", td_lambda=td_lambda, gamma=gamma))
    assert len(found) == tree.num_nodes
    assert found == {n: pytest.approx(wanted[n], abs=1e-9) for n in found}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), iterations=st.integers(0, 25), gamma=st.floats(0.1, 1.0))
@pytest.mark.parametrize(("target", "of"), [("mean", statistics.fmean), ("max", max)])
def test_discounted_values_equal_brute_force(target, of, seed, iterations, gamma):
    tree = record(seed, iterations)
    found = targets_of(tree, LabelConfig(target=target, gamma=gamma))
    wanted = brute_force(tree, gamma, of)
    assert found == {n: pytest.approx(value) for n, (value, _, _) in wanted.items()}


def test_terminal_states_can_be_left_without_a_label():
    tree = record(3, 12)
    known = brute_force(tree)
    labelled = label_tree(tree, LabelConfig(terminal=False))
    for number, (_, visits, terminal) in known.items():
        expected = 0.0 if terminal or not visits else visits / (visits + 2)
        assert labelled.weights[number] == pytest.approx(expected)
    assert any(terminal and visits for _, visits, terminal in known.values())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), iterations=st.integers(1, 20))
def test_lambda_goes_from_one_step_to_the_outcome(seed, iterations):
    tree = counted(record(seed, iterations), seed)
    known, counts = brute_force(tree), times_chosen(tree)
    parents = {n.node: n.parent for it in tree.iterations for n in it.nodes}
    one_step = targets_of(tree, LabelConfig(target="td", td_lambda=0.0))
    outcome = targets_of(tree, LabelConfig(target="td", td_lambda=1.0))
    for number in one_step:
        own = [c for c, parent in parents.items() if parent == number and known[c][1]]
        if not own:
            assert one_step[number] == outcome[number] == pytest.approx(known[number][0])
            continue
        for found, worth in ((one_step, {c: known[c][0] for c in own}), (outcome, outcome)):
            mean = np.average([worth[c] for c in own], weights=[counts[c] for c in own])
            assert found[number] == pytest.approx(mean)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), td_lambda=st.floats(0, 1, allow_subnormal=False))
def test_counted_as_the_search_visits_every_lambda_gives_the_mean(seed, td_lambda):
    """Why children count as often as the policy chose them."""
    tree = record(seed, 15)
    known = brute_force(tree)
    visits = {number: count for number, (_, count, _) in known.items()}
    found = brute_force_targets(tree, known, visits, td_lambda)
    assert found == {n: pytest.approx(mean, abs=1e-9) for n, (mean, _, _) in known.items()}


def test_turns_merged_into_a_cached_child_are_counted():
    """Five turns: 3 + 2 at the root, then a rollout 1 - 3; node 1 is expanded into one new child,
    so that four of its five turns were node 3's again."""

    def grown(iteration, path, *nodes):
        answer = Transition(observation="", reward=0.0, done=False, success=False)
        step = Step(reply="", action="", transition=answer)
        return IterationRecord(
            task_id="", iteration=iteration, path=path, outcome=0.0,
            nodes=tuple(
                NodeRecord(node=n, parent=p, step=step, multiplicity=m) for n, p, m in nodes
            ),
        )  # fmt: skip

    iterations = (
        grown(0, (0, 1, 3), (1, 0, 3), (2, 0, 2), (3, 1, 1)),
        grown(1, (0, 1, 4, 5), (4, 1, 1), (5, 4, 1)),
    )
    tree = TreeRecord(task=game(0), first_observation="Go.", iterations=iterations)
    assert times_chosen(tree) == {1: 3, 2: 2, 3: 5, 4: 1, 5: 1}


def test_turns_merged_into_several_cached_children_are_divided():
    """Eight turns: all at node 1, whose three rollouts go on to 2 (twice) and 3; the expansion of
    node 1 has two new turns, so that six were those of 2 and 3 again, four and two as expected."""

    def grown(iteration, paths, *nodes):
        answer = Transition(observation="", reward=0.0, done=False, success=False)
        step = Step(reply="", action="", transition=answer)
        first, *further = [BackupRecord(path=path, outcome=0.0) for path in paths]
        return IterationRecord(
            task_id="", iteration=iteration, path=first.path, outcome=0.0, further=tuple(further),
            nodes=tuple(
                NodeRecord(node=n, parent=p, step=step, multiplicity=m) for n, p, m in nodes
            ),
        )  # fmt: skip

    paths = ((0, 1, 2), (0, 1, 2), (0, 1, 3))
    iterations = (
        grown(0, paths, (1, 0, 8), (2, 1, 2), (3, 1, 1)),
        grown(1, ((0, 1, 4),) * 3, (4, 1, 2)),
    )
    tree = TreeRecord(task=game(0), first_observation="Go.", iterations=iterations)
    assert times_chosen(tree) == pytest.approx({1: 8, 2: 2 + 4, 3: 1 + 2, 4: 2})


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("target", ["mean", "max"])
def test_every_rollout_of_an_iteration_counts(target, gamma):
    """Two rollouts from node 1: they end after one step with 1, after two with 0.5."""

    def added(number, parent, reward):
        done = reward is not None
        answer = Transition(observation="", reward=reward or 0.0, done=done, success=False)
        step = Step(reply="", action="", transition=answer)
        return NodeRecord(node=number, parent=parent, step=step, multiplicity=1)

    iteration = IterationRecord(
        task_id="", iteration=0, path=(0, 1, 2), outcome=1.0,
        nodes=(added(1, 0, None), added(2, 1, 1.0), added(3, 1, None), added(4, 3, 0.5)),
        further=(BackupRecord(path=(0, 1, 3, 4), outcome=0.5),),
    )  # fmt: skip
    tree = TreeRecord(task=game(0), first_observation="Go.", iterations=(iteration,))
    labelled = label_tree(tree, LabelConfig(target=target, gamma=gamma))
    assert labelled.visit_counts == (2, 2, 1, 1, 1)
    returns = [[1.0 * gamma**2, 0.5 * gamma**3], [1.0 * gamma, 0.5 * gamma**2]]
    of = max if target == "max" else statistics.fmean
    assert labelled.values == pytest.approx([*map(of, returns), 1.0, 0.5 * gamma, 0.5])


def test_all_trees_are_labelled_in_order():
    trees = [record(seed, iterations) for seed, iterations in ((1, 5), (2, 0), (3, 9))]
    labelled = label(trees)
    assert labelled == [label_tree(tree, LabelConfig()) for tree in trees]
    assert labelled[1].num_labels == 0
    assert labelled[1].branches() == []


def test_states_of_a_trajectory_have_its_outcome():
    rewards = (0.25, 0.0, 0.5)
    steps = tuple(
        Step(
            reply=str(i),
            action="",
            transition=Transition(observation="", reward=reward, done=i == 2, success=False),
        )
        for i, reward in enumerate(rewards)
    )
    whole = Trajectory(task=game(0), first_observation="Go.", steps=steps)
    other = dataclasses.replace(whole, task=game(1), steps=())
    [tree, root] = label_trajectories([whole, other])
    assert tree.values == (0.75,) * 4
    assert tree.weights == (1.0,) * 4
    assert tree.state(3) == whole
    [branch] = tree.branches()
    assert branch.nodes == (0, 1, 2, 3)
    assert (root.values, root.num_labels) == ((0.0,), 1)
    with pytest.raises(UserError, match=r"task game/0: .*outcome within 0 and 1 \(got 1.25\)"):
        label_trajectories([dataclasses.replace(whole, steps=(*steps, steps[2]))])


def logged(outcome, *texts, number=0):
    """A log whose replies and answers are the same texts, with an outcome at its end."""
    steps = tuple(
        Step(
            reply=text,
            action=text,
            transition=Transition(
                observation=text.upper(),
                reward=outcome * (i == len(texts)),
                done=i == len(texts),
                success=False,
            ),
        )
        for i, text in enumerate(texts, start=1)
    )
    return Trajectory(task=game(number), first_observation="Go.", steps=steps)


def test_logs_with_equal_beginnings_share_their_values():
    logs = [logged(1.0, "a", "b"), logged(0.5, "a"), logged(0.0, "a", "c"), logged(0.25, "a", "b")]
    [tree, other] = label_trajectories([*logs, logged(0.75, "a", number=1)])
    assert tree.parents == (-1, 0, 1, 1)
    assert [step.reply for step in tree.steps] == ["a", "b", "c"]
    assert tree.values == (1.75 / 4, 1.75 / 4, 0.625, 0.0)
    assert tree.visit_counts == (4, 4, 2, 1)
    assert tree.weights == (1.0,) * 4
    assert [step.transition.done for step in tree.steps] == [False, True, True]
    assert other.values == (0.75, 0.75)
    [best] = label_trajectories(logs, LabelConfig(target="max"))
    assert best.values == (1.0, 1.0, 1.0, 0.0)
    [td] = label_trajectories(logs, LabelConfig(target="td", td_lambda=0.0))
    assert td.values[1] == pytest.approx((0.625 * 2 + 0.0) / 3)  # of those that go on


def test_config_names_what_is_wrong():
    with pytest.raises(UserError, match=r"min_visits must be at least 1"):
        LabelConfig(min_visits=0)
    with pytest.raises(UserError, match=r"weighting .*mean"):
        LabelConfig(weighting="mean")
    with pytest.raises(UserError, match=r"target .*gae"):
        LabelConfig(target="gae")
    with pytest.raises(UserError, match=r"td_lambda must be"):
        LabelConfig(td_lambda=1.5)


def test_fewer_trees_are_a_subset_in_their_order():
    trees = [
        TreeRecord(
            task=dataclasses.replace(game(0), task_id=f"t/{i}"), first_observation="", iterations=()
        )
        for i in (5, 3, 8, 1, 9, 2)
    ]
    chosen = [chosen_trees(trees, n) for n in range(8)]
    assert chosen[0] == chosen[6] == chosen[7] == trees
    for n in range(1, 7):
        assert len(chosen[n]) == n
        assert chosen[n] == [tree for tree in trees if tree in chosen[n]]
        assert all(tree in chosen[n] for tree in chosen[n - 1]) or n == 1
        labelled = label(trees, LabelConfig(num_trees=n))
        assert [tree.task for tree in labelled] == [tree.task for tree in chosen[n]]
