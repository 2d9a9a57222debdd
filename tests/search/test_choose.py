"""Every rule on cases made by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from random_game import game

from agentrm_jax.core.records import Step, Trajectory, Transition
from agentrm_jax.search.choose import (
    BASELINES,
    NotAvailable,
    argmax_weights,
    best,
    best_of_fewer,
    majority_of_n,
)


def trajectory(
    *actions: str, outcome: float = 0.0, log_probs: tuple[float, ...] = (-1.0,), invalid: int = 0
):
    steps = [
        Step(
            reply=f"Action: {action}", action=action, token_ids=(1,), log_probs=log_probs,
            transition=Transition(
                observation="", reward=outcome if i == len(actions) - 1 else 0.0,
                done=i == len(actions) - 1, success=outcome == 1.0, valid=i >= invalid,
            ),
        )
        for i, action in enumerate(actions)
    ]  # fmt: skip
    return Trajectory(task=game(0), first_observation="", steps=tuple(steps))


def test_the_first_of_equal_scores_is_taken():
    np.testing.assert_array_equal(argmax_weights([0.1, 0.7, 0.7]), [0, 1, 0])
    np.testing.assert_array_equal(argmax_weights([-2.0]), [1])


CASES = {
    "random_of_n": ([trajectory("a"), trajectory("b"), trajectory("c", "d")], [1 / 3] * 3),
    "majority_of_n": (
        [trajectory("go north", "open"), trajectory("go south", "look"), trajectory(" go south")],
        [0, 1, 0],
    ),
    "shortest_of_n": ([trajectory("a", "b"), trajectory("c"), trajectory("d")], [0, 1, 0]),
    "likeliest_of_n": (
        [
            trajectory("a", "b", log_probs=(-0.4,)),  # -0.8 in all
            trajectory("c", log_probs=(-0.3, -0.2)),  # -0.5
            trajectory("d", log_probs=(-0.7,)),
        ],
        [0, 1, 0],
    ),
    "fewest_invalid_of_n": (
        [
            trajectory("a", log_probs=(-0.1,), invalid=1),
            trajectory("b", "c", log_probs=(-90.0,)),  # -180 in all
            trajectory("d", "e", "f", log_probs=(-20.0,)),  # -60
            trajectory("g", "h", log_probs=(-0.3,), invalid=2),
        ],
        [0, 0, 1, 0],
    ),
    "oracle_of_n": (
        [trajectory("a", outcome=0.5), trajectory("b", outcome=0.9), trajectory("c", outcome=0.9)],
        [0, 1, 0],
    ),
}


@pytest.mark.parametrize("name", BASELINES)
def test_rules(name):
    trajectories, weights = CASES[name]
    np.testing.assert_allclose(BASELINES[name](trajectories), weights)


@pytest.mark.parametrize("name", BASELINES)
def test_among_equals_the_first(name):
    weights = BASELINES[name]([trajectory("a", "b", outcome=0.5)] * 4)
    expected = [0.25] * 4 if name == "random_of_n" else [1, 0, 0, 0]
    np.testing.assert_allclose(weights, expected)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"random_of_n"}))
def test_a_broken_trajectory_is_chosen_only_where_all_broke(name):
    """Though it is the shortest and the likeliest, and had earned something."""
    whole = trajectory("a", "a", outcome=0.5, log_probs=(-9.0,))
    broken = Trajectory(task=game(0), first_observation="")
    earned = trajectory("b", outcome=0.75)
    transition = dataclasses.replace(earned.steps[0].transition, done=False)
    steps = (dataclasses.replace(earned.steps[0], transition=transition),)
    earned = dataclasses.replace(earned, steps=steps)
    rule = BASELINES[name]
    np.testing.assert_array_equal(rule([broken, earned, earned, whole]), [0, 0, 0, 1])
    np.testing.assert_array_equal(rule([broken, earned]), [1, 0])


def test_best_of_fewer_is_the_mean_over_all_draws():
    """Against every draw, with equal scores and one that broke."""
    own = [trajectory(*"a" * length) for length in (2, 1, 3, 1, 2, 1)]
    own[1] = Trajectory(task=game(0), first_observation="")
    scores = [0.5, 9.0, 0.5, -1.0, 0.75, 0.5]
    weights = best_of_fewer(own, scores)
    for k in range(1, 7):
        draws = [list(draw) for draw in itertools.combinations(range(6), k)]
        expected = np.zeros(6)
        for draw in draws:
            expected[draw] += best([own[i] for i in draw], [scores[i] for i in draw]) / len(draws)
        np.testing.assert_allclose(weights[k - 1], expected, atol=1e-12)


def test_the_environment_says_which_actions_the_majority_shares():
    """Capital letters count unless the environment says that they do not."""
    votes = [
        trajectory("x"),
        trajectory("Go", "On"),
        trajectory("go", "on"),
        trajectory("GO", "on"),
    ]
    folded = majority_of_n(votes, lambda task, action: action.lower())
    np.testing.assert_array_equal(folded, [0, 1, 0, 0])
    np.testing.assert_array_equal(majority_of_n(votes), [0, 0, 1, 0])


@pytest.mark.parametrize("name", ["likeliest_of_n", "fewest_invalid_of_n"])
def test_without_log_probabilities_no_rule_chooses_by_them(name):
    known, unknown = trajectory("a", "b"), trajectory("a", "b", log_probs=())
    with pytest.raises(NotAvailable, match="not available: the policy gives no log-probabilities"):
        BASELINES[name]([known, unknown])


def test_majority_is_a_vote_where_sequences_repeat():
    votes = [trajectory("a", "b"), trajectory("x", "y"), trajectory("x", "y"), trajectory("c")]
    np.testing.assert_array_equal(BASELINES["majority_of_n"](votes), [0, 1, 0, 0])
