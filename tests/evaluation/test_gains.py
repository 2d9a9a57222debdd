"""Gains over baselines against plain loops."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
from report_cases import episodes

from agentrm_jax.evaluation.episodes import AT_OBSERVATION, Episode
from agentrm_jax.evaluation.gains import correct_gains, gains
from agentrm_jax.evaluation.significance import paired_test

RUN = episodes(6)


def of(run: list[Episode], **keys) -> list[Episode]:
    return [each for each in run if all(getattr(each, name) == keys[name] for name in keys)]


def with_controls(run: list[Episode]) -> list[Episode]:
    """Adds beams by likelihood, blind and after the answer, of which all and none succeed."""
    beams = of(run, method="beam")
    return [
        *run,
        *(
            dataclasses.replace(each, reward_model="likelihood", score_at=place, outcome=outcome)
            for place, outcome in (("action", 1.0), (AT_OBSERVATION, 0.0))
            for each in beams
        ),
    ]


def test_the_gain_is_the_mean_difference_of_the_same_tasks():
    best = of(RUN, method="best_of_n", reward_model="explicit")
    found = gains(best, ["random_of_n"], [RUN])
    other = {each.task.task_id: each.outcome for each in of(RUN, method="random_of_n")}
    expected = statistics.mean(each.outcome - other[each.task.task_id] for each in best)
    assert found["gain_over_random_of_n"] == pytest.approx(expected)
    low, high = found["gain_over_random_of_n_ci95"]
    assert low <= expected <= high
    pairs = [(each.outcome, other[each.task.task_id]) for each in best]
    assert found["gain_over_random_of_n_p"] == paired_test(*zip(*pairs, strict=True))[0]


def test_p_values_of_more_than_five_gains_are_corrected():
    few = [{"gain_over_a_p": p, "gain_over_a": 0.1} for p in (0.01, 0.02)]
    correct_gains(few)
    assert [row["gain_over_a_p_holm"] for row in few] == [0.01, 0.02]
    many = [{"gain_over_a_p": 0.01, "gain_over_b_p": 0.5}, {}]
    many += [{"gain_over_a_p": p} for p in (0.02, 0.6, 0.7, 0.8)]
    correct_gains(many)
    assert many[0]["gain_over_a_p_holm"] == pytest.approx(6 * 0.01)
    assert many[2]["gain_over_a_p_holm"] == pytest.approx(5 * 0.02)
    assert many[1] == {}


def test_a_control_is_the_same_method_at_the_same_place_of_the_score():
    run = with_controls(RUN)
    beam = of(run, method="beam", reward_model="explicit")
    score = statistics.mean(each.outcome for each in beam)
    assert gains(beam, ["likelihood"], [run])["gain_over_likelihood"] == pytest.approx(score)
    blind = [dataclasses.replace(each, score_at="action") for each in beam]
    found = gains(blind, ["likelihood"], [run])["gain_over_likelihood"]
    assert found == pytest.approx(score - 1.0)


def test_a_baseline_of_another_run_counts_if_the_own_run_has_none():
    best = of(RUN, method="best_of_n", reward_model="explicit")
    assert gains(best, ["greedy"], [best]) == {}
    assert gains(best, ["greedy"], [best, RUN]) == gains(best, ["greedy"], [RUN])


def test_tasks_of_other_seeds_are_not_paired():
    best = of(RUN, method="best_of_n", reward_model="explicit")
    later = [dataclasses.replace(each, seed=1) for each in RUN]
    assert gains(best, ["greedy"], [later]) == {}
