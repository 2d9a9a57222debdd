"""Pairs of trajectories from outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from conversation_cases import step, task

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.pairs import preference_pairs


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
