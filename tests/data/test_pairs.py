"""Pairs of trajectories: from outcomes, from stored trees, on disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conversation_cases import step, task, trajectory

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.pairs import open_pairs, preference_pairs, write_pairs
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeRecord


def with_outcomes(*outcomes: float) -> list[Trajectory]:
    """Trajectories of one task that tell each other apart by their first observation."""
    return [
        Trajectory(
            task=task(),
            first_observation=str(number),
            steps=(step("Action: go", "You went.", reward=outcome, done=True),),
        )
        for number, outcome in enumerate(outcomes)
    ]


def outcomes(pairs) -> list[tuple[float, float]]:
    return [(better.outcome, worse.outcome) for better, worse in pairs]


def test_pairs_are_of_different_outcomes():
    pairs = preference_pairs([with_outcomes(0.5, 0.0, 1.0, 0.25), with_outcomes(1, 1)])
    assert outcomes(pairs) == [(1.0, 0.0), (0.5, 0.25)]
    tied = preference_pairs([with_outcomes(1.0, 1.0, 1.0, 0.0)])
    assert outcomes(tied) == [(1.0, 0.0)]
    assert tied[0][0].first_observation == "0"
    assert preference_pairs([[], with_outcomes(0.3)]) == []


def random_record(seed: int) -> TreeRecord:
    """Ten nodes in two iterations; the paths do not matter here."""
    rng = np.random.default_rng(seed)
    nodes = []
    for number in range(1, 11):
        open_nodes = [0, *(n.node for n in nodes if not n.step.transition.done)]
        done = bool(rng.random() < 0.4)
        reward = float(rng.integers(0, 5) / 4) if done else 0.0
        nodes.append(
            NodeRecord(
                node=number,
                parent=int(rng.choice(open_nodes)),
                step=step(f"Action: go {number}", "You went.", reward=reward, done=done),
                multiplicity=1,
            )
        )
    iterations = tuple(
        IterationRecord(task_id="toy/0", iteration=i, nodes=part, path=(0,), outcome=0.0)
        for i, part in enumerate((tuple(nodes[:4]), tuple(nodes[4:])))
    )
    return TreeRecord(task=task(), first_observation="Go.", iterations=iterations)


@pytest.mark.parametrize("seed", range(5))
def test_the_finished_trajectories_of_a_tree_are_those_found_from_its_root(seed):
    tree = random_record(seed)
    nodes = [node for iteration in tree.iterations for node in iteration.nodes]
    found: dict[int, Trajectory] = {}

    def walk(number: int, state: Trajectory) -> None:
        if state.done:
            found[number] = state
        for node in nodes:
            if node.parent == number:
                walk(node.node, state.extended(node.step))

    walk(0, Trajectory(task=tree.task, first_observation=tree.first_observation))
    assert len(found) > 1
    assert tree.finished_trajectories() == [found[number] for number in sorted(found)]
    pairs = preference_pairs([tree.finished_trajectories()])
    assert pairs == preference_pairs([tree.finished_trajectories()])
    assert all(better.outcome > worse.outcome for better, worse in pairs)
    used = [side.steps[-1].action for pair in pairs for side in pair]
    assert len(set(used)) == len(used)  # each trajectory is in one pair at most


def test_pairs_come_back_in_order(tmp_path):
    written = [
        (trajectory(i + 1, i), dataclasses.replace(trajectory(i, i), first_observation="Other."))
        for i in range(4)
    ]
    assert write_pairs(tmp_path / "pairs", iter(written)) == 4
    assert list(open_pairs(tmp_path / "pairs", "label")) == written


def test_what_is_not_there_or_empty_is_said(tmp_path):
    with pytest.raises(UserError, match="pairs: not found; `agentrm label` makes it"):
        open_pairs(tmp_path / "pairs", "label")
    with pytest.raises(UserError, match="nothing to write, no pairs was made"):
        write_pairs(tmp_path / "pairs", [])
