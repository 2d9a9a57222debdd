"""Searches for the viewer: what is drawn follows from what was stored, within bounds."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from report_cases import episodes, step, task, tree

from agentrm_jax.core.records import Step, Trajectory, Transition
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeRecord
from agentrm_jax.evaluation.searches import (
    Search,
    rollout_search,
    samples_search,
    tree_search,
)
from agentrm_jax.evaluation.viewer import episode_answer, make_viewer, tree_answer
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode
from benchmarks.reports import made_up_beam, made_up_samples, made_up_tree


def test_a_tree_has_the_visits_and_values_of_its_iterations() -> None:
    grown = made_up_tree(task(), 80, random.Random(1))
    found = tree_search(grown, {"explicit": {1: 0.25}})
    assert len(found.nodes) == grown.num_nodes
    for number, node in enumerate(found.nodes):
        through = [it.outcome for it in grown.iterations if number in it.path]
        assert node.visits == len(through)
        expected = sum(through) / len(through) if through else None
        assert node.value == (None if expected is None else pytest.approx(expected))
        if number:
            record = grown.nodes[number]
            assert (node.parent, node.action) == (record.parent, record.step.action)
            assert found.multiplicity[number] == record.multiplicity
    assert found.scores["explicit"][1] == 0.25
    assert found.scores["explicit"].count(None) == len(found.nodes) - 1


def test_a_deep_tree_needs_no_recursion() -> None:
    """At every second depth a dead end branches off, so that nothing is drawn together."""
    nodes = []
    for level in range(2000):
        parent = 2 * level - 1 if level else 0
        for number in (2 * level + 1, 2 * level + 2):
            made = step(f"act {number}", "ok", done=number == 3999)
            nodes.append(NodeRecord(node=number, parent=parent, step=made, multiplicity=1))
    path = (0, *range(1, 4000, 2))
    iteration = IterationRecord(
        task_id=task().task_id, iteration=0, nodes=tuple(nodes), path=path, outcome=0.0
    )
    deep = TreeRecord(task=task(), first_observation="go", iterations=(iteration,))
    data = json.loads(make_viewer([], [tree_search(deep)]).searches[0])
    assert "act 4000" in data["texts"]
    assert sum(data["visits"]) == 2001


def test_a_tree_without_iterations_is_its_root() -> None:
    [root] = tree_search(TreeRecord(task=task(), first_observation="go")).nodes
    assert (root.parent, root.visits, root.value, root.observation) == (-1, 0, None, "go")


def test_samples_share_equal_first_steps() -> None:
    """The oracle goes through the prefixes of all samples, one by one."""
    samples = made_up_samples(task(), random.Random(3), n=6)
    samples[2] = dataclasses.replace(samples[2], error="it broke")
    scores = [0.1, 0.9, 0.3, 0.9, 0.2, 0.5]
    found = samples_search(samples, {"explicit": scores}, "samples")

    def path(i: int) -> tuple[tuple[str, str], ...]:
        node, steps = found.nodes[i], []
        while node.parent >= 0:
            steps.append((node.action, node.observation))
            node = found.nodes[node.parent]
        return tuple(reversed(steps))

    prefixes: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for sample in samples:
        steps = [(s.action, s.transition.observation) for s in sample.trajectory.steps]
        for length in range(len(steps) + 1):
            outcome = 0.0 if sample.error else sample.trajectory.outcome
            prefixes.setdefault(tuple(steps[:length]), []).append(outcome)
    assert {path(i) for i in range(len(found.nodes))} == set(prefixes)
    for i, node in enumerate(found.nodes):
        outcomes = prefixes[path(i)]
        assert (node.visits, node.value) == (len(outcomes), sum(outcomes) / len(outcomes))
    best = [(s.action, s.transition.observation) for s in samples[1].trajectory.steps]
    assert path(found.chosen["explicit"]) == tuple(best)  # of equal scores the first
    assert found.note == "1 ended by an error: it broke"
    assert sorted(s for s in found.scores["explicit"] if s is not None) == sorted(scores)


def test_a_search_of_a_method_keeps_its_nodes_and_its_path() -> None:
    answer = made_up_beam(task(), random.Random(0))
    found = rollout_search(answer, "beam")
    assert found.nodes == answer.search
    data = json.loads(make_viewer([], [found]).searches[0])
    path, at = set(), data["chosen"][""]
    while at >= 0:
        path.add(at)
        at = data["parent"][at]
    assert path == {i for i, node in enumerate(answer.search) if node.chosen}
    assert data["status"].count(1) == sum(n.status == "removed" for n in answer.search)


def test_an_answer_without_search_is_one_path() -> None:
    answer = made_up_samples(task(), random.Random(0), n=1)[0]
    found = rollout_search(answer, "greedy")
    assert [node.parent for node in found.nodes] == list(range(-1, len(answer.trajectory.steps)))


def test_each_task_is_listed_once_with_the_answers_of_all_methods() -> None:
    made = episodes(2)
    viewer = make_viewer(map(episode_answer, made), [tree_search(tree())])
    labels, tasks = viewer.data["labels"], viewer.data["tasks"]
    assert {entry["id"] for entry in tasks} == {e.task.task_id for e in made}
    [first] = [entry for entry in tasks if entry["id"] == made[0].task.task_id]
    own = [e for e in made if e.task.task_id == made[0].task.task_id]
    assert [(labels[row[0]], row[1]) for row in first["rows"]] == [
        (e.variant.label, e.outcome) for e in own
    ]
    assert first["searches"] == [0]
    assert first["goal"] == tree().first_observation


def test_what_does_not_fit_is_left_out_and_said() -> None:
    searches = [tree_search(made_up_tree(task(i), 60, random.Random(i))) for i in range(5)]
    sizes = [len(text) for text in make_viewer([], searches).searches]
    viewer = make_viewer(map(tree_answer, searches), searches, limit=sizes[0] + sizes[1])
    assert len(viewer.searches) == 2
    assert len(viewer.data["tasks"]) == 5  # without a search, yet listed
    assert viewer.notes == [
        f"3 searches are left out: the page holds {sum(sizes[:2]):,} characters."
    ]


def test_long_texts_are_cut_until_a_search_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(reply="r" * 50_000, action="a", transition=Transition(
        observation="o" * 50_000, reward=0.0, done=True, success=False))  # fmt: skip
    long = Rollout(trajectory=Trajectory(task=task(), first_observation="go", steps=(step,)))
    found = rollout_search(long, "greedy")
    texts = json.loads(make_viewer([], [found]).searches[0])["texts"]
    assert "46,000 more characters" in texts[-1]
    monkeypatch.setattr("agentrm_jax.evaluation.viewer.SEARCH_CHARACTERS", 2000)
    viewer = make_viewer([], [found])
    assert len(viewer.searches[0]) < 2000
    assert viewer.notes == ["Texts of 1 searches are shortened."]


def test_numbers_that_are_not_finite_are_null_and_scales_hold_all_scores() -> None:
    nodes = (SearchNode(parent=-1), SearchNode(parent=0, score=2.5), SearchNode(parent=0, score=-1))
    scores = {"m": [float("nan"), 2.5, -1.0]}
    data = json.loads(
        make_viewer([], [Search(task=task(), label="s", nodes=nodes, scores=scores)]).searches[0]
    )
    assert data["scores"]["m"] == [None, 2.5, -1.0]
    assert data["spans"]["m"] == [-1.0, 2.5]


def test_nodes_out_of_order_are_an_error() -> None:
    nodes = (SearchNode(parent=-1), SearchNode(parent=2), SearchNode(parent=0))
    with pytest.raises(ValueError, match="a parent does not stand before its children"):
        make_viewer([], [Search(task=task(), label="s", nodes=nodes)])
