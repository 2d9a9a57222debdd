"""Pairs of trajectories from outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from conversation_cases import step, task

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.pairs import preference_pairs, sibling_pairs
from agentrm_jax.data.states import LabelledTree


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


@pytest.mark.parametrize("seed", range(5))
def test_each_trajectory_is_in_one_pair_at_most(seed):
    rng = np.random.default_rng(seed)
    group = with_outcomes(*(float(n) / 4 for n in rng.integers(0, 5, 11)))
    pairs = preference_pairs([group])
    assert pairs
    assert all(better.outcome > worse.outcome for better, worse in pairs)
    used = [side.first_observation for pair in pairs for side in pair]
    assert len(set(used)) == len(used)
    rest = sorted(t.outcome for t in group if t.first_observation not in used)
    assert rest[0] == rest[-1]  # the others are all equal


def test_pairs_of_siblings_differ_in_the_last_action_alone():
    """Root: b > a, c has no label, d repeats b; below b: e > f; below a: two of equal value."""
    replies = ["a", "b", "c", "b", "e", "f", "g", "h"]
    tree = LabelledTree(
        task=task(),
        first_observation="",
        parents=(-1, 0, 0, 0, 0, 2, 2, 1, 1),
        steps=tuple(step(f"Action: {name}", f"after {name}") for name in replies),
        values=(0.5, 0.25, 0.75, 0.0, 0.25, 1.0, 0.5, 0.25, 0.25),
        visit_counts=(1,) * 9,
        weights=(1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0),
    )
    pairs = [
        tuple("".join(s.action for s in side.steps) for side in pair)
        for pair in sibling_pairs([tree])
    ]
    assert pairs == [("b", "a"), ("be", "bf")]
    assert all(
        not side.steps[-1].answered and better.steps[:-1] == worse.steps[:-1]
        for better, worse in sibling_pairs([tree])
        for side in (better, worse)
    )
