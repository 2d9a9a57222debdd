"""Ensembles against the statistics of their members, in plain Python."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy.stats import rankdata

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.reward.ensemble import EnsembleScorer, EnsembleSettings, moments_of
from agentrm_jax.reward.places import placed
from agentrm_jax.testing.models import tiny_state

GROUPS = [[tiny_state(0, n) for n in (3, 1, 0, 1, 2)], [], [tiny_state(7, 4)]]


def length(states: list[Trajectory]) -> list[float]:
    return [float(len(state.steps)) for state in states]


def drawn(seed: int):
    """A score function with a mean and a deviation of its own."""

    def scores(states: list[Trajectory]) -> list[float]:
        rng = np.random.default_rng(seed)
        return (10 * seed + seed * rng.standard_normal(len(states))).tolist()

    return scores


MEMBERS = [length, drawn(1), drawn(2)]


def settings(**values) -> EnsembleSettings:
    return EnsembleSettings(**values)


def members_of(group: list[Trajectory]) -> list[list[float]]:
    return [member(group) for member in MEMBERS]


def test_the_mean_is_lowered_by_the_deviation() -> None:
    found = EnsembleScorer(MEMBERS, settings(beta=0.7)).score(GROUPS)
    for group, scores in zip(GROUPS, found, strict=True):
        wanted = [
            statistics.fmean(each) - 0.7 * statistics.pstdev(each)
            for each in zip(*members_of(group), strict=True)
        ]
        assert scores == pytest.approx(wanted)


def test_a_weight_counts_as_copies_of_a_member() -> None:
    weighted = EnsembleScorer(MEMBERS, settings(beta=0.3, weights=(2.0, 1.0, 3.0)))
    copies = [length] * 2 + [MEMBERS[1]] + [MEMBERS[2]] * 3
    expected = EnsembleScorer(copies, settings(beta=0.3)).score(GROUPS)
    for found, wanted in zip(weighted.score(GROUPS), expected, strict=True):
        assert found == pytest.approx(wanted)


def test_the_most_pessimistic_member() -> None:
    [found, *_] = EnsembleScorer(MEMBERS, settings(reduction="min")).score(GROUPS)
    assert found == [min(each) for each in zip(*members_of(GROUPS[0]), strict=True)]


def test_ranks_within_a_task_have_no_scale() -> None:
    scorer = EnsembleScorer(MEMBERS, settings(scale="rank"))
    [scores, none, [alone]] = scorer.score(GROUPS)
    ranks = [(rankdata(each) - 1) / 4 for each in members_of(GROUPS[0])]
    assert scores == pytest.approx(np.mean(ranks, axis=0))
    assert none == []
    assert alone == 0.0
    stretched = [lambda states: [math.exp(5 * s) for s in length(states)], *MEMBERS[1:]]
    assert EnsembleScorer(stretched, settings(scale="rank")).score(GROUPS)[0] == scores


def test_standard_scores_have_the_moments_of_training_trajectories() -> None:
    training = [tiny_state(number, number % 5) for number in range(40)]
    moments = [moments_of(member(training), "m") for member in MEMBERS]
    assert moments[0] == pytest.approx(
        (statistics.fmean(length(training)), statistics.pstdev(length(training)))
    )
    scorer = EnsembleScorer(MEMBERS, settings(scale="standard", beta=1.0), moments)
    wanted = []
    for each in zip(*members_of(GROUPS[0]), strict=True):
        scaled = [(s - mean) / dev for s, (mean, dev) in zip(each, moments, strict=True)]
        wanted.append(statistics.fmean(scaled) - statistics.pstdev(scaled))
    assert scorer.score(GROUPS)[0] == pytest.approx(wanted)
    assert moments_of([1.0, float("nan"), 3.0]) == (2.0, 1.0)
    for scores in ([], [2.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(UserError, match="scale must not be standard: m gives one and the same"):
            moments_of(scores, "m")


def test_an_undecided_member_leaves_its_group_undecided() -> None:
    def undecided(states: list[Trajectory]) -> list[float]:
        return [math.nan if len(state.steps) == 2 else 1.0 for state in states]

    scores = EnsembleScorer([length, undecided], settings(scale="rank")).score(GROUPS)
    assert np.isnan(scores[0]).all()
    assert len(scores[0]) == 5
    assert scores[2] == [0.0]


def test_members_read_what_the_ensemble_costs() -> None:
    class Counting:
        tokens_read = 7

        def score(self, groups):
            return [length(group) for group in groups]

        def cost(self, group):
            return 10 * len(group)

    scorer = EnsembleScorer([Counting(), Counting(), length])
    assert scorer.cost(GROUPS[0]) == 100
    assert scorer.tokens_read == 14
    assert placed(scorer, "mean").cost(GROUPS[0][:1]) == 60  # three prefixes, two readers


@pytest.mark.parametrize(
    ("members", "values", "moments", "message"),
    [
        ([length], {}, (), "members must be at least 2 reward models"),
        ([length, 3], {}, (), "scorer must be a function"),
        (MEMBERS, {"weights": (1.0, 2.0)}, (), "weights must be 3 numbers"),
        (MEMBERS, {"weights": (1.0, 0.0, 2.0)}, (), "weights must be all above 0"),
        (MEMBERS, {"beta": -1.0}, (), "beta must be at least 0"),
        (MEMBERS, {"reduction": "max"}, (), "reduction must be one of mean, min"),
        (MEMBERS, {"reduction": "min", "beta": 1.0}, (), "beta must be left out if reduction is"),
        (MEMBERS, {"scale": "z"}, (), "scale must be one of none, rank, standard"),
        (MEMBERS, {"scale": "standard"}, (), "moments must be a mean and a deviation of each"),
        (MEMBERS, {"scale": "standard"}, ((0.0, 1.0),), "moments must be a mean and a deviation"),
    ],
)
def test_mistakes(members, values, moments, message) -> None:
    with pytest.raises(UserError, match=message):
        EnsembleScorer(members, settings(**values), moments)
