"""Thresholds of methods: which are open, what is tried, and the refusal to run without a value."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
from random_game import GamePolicy, GamePool, game

import agentrm_jax as arm
from agentrm_jax.core.errors import UserError
from agentrm_jax.search.methods import BestOfN
from agentrm_jax.search.retry import Retry
from agentrm_jax.search.thresholds import check_thresholds, open_thresholds, threshold_candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Two:
    thresholds: ClassVar = {"low": (0.1, 0.2), "high": (0.7, 0.8, 0.9)}

    low: float | None = None
    high: float | None = None


def test_all_combinations_of_open_thresholds_are_tried():
    assert threshold_candidates(Two()) == [
        {"low": low, "high": high} for low in (0.1, 0.2) for high in (0.7, 0.8, 0.9)
    ]
    assert threshold_candidates(Two(low=0.5)) == [{"high": value} for value in (0.7, 0.8, 0.9)]
    assert threshold_candidates(Two(low=0.5, high=0.0)) == []
    assert threshold_candidates(BestOfN()) == []
    assert list(open_thresholds(Retry())) == ["retry_below"]
    assert open_thresholds(Retry(uses_score=False)) == {}


def test_a_threshold_without_a_value_is_refused_by_name():
    with pytest.raises(UserError, match=r"^low has no value; run `agentrm calibrate`.* to 0\.2$"):
        check_thresholds(Two())
    with pytest.raises(UserError, match=r"^high has no value"):
        check_thresholds(Two(low=0.3))
    check_thresholds(Two(low=0.3, high=0.4))


@pytest.mark.parametrize("wrong", [{"other": (0.5,)}, {"low": ()}])
def test_a_class_with_wrong_thresholds_is_named(wrong):
    class Wrong(Two):
        thresholds: ClassVar = wrong

    with pytest.raises(UserError, match=r"Wrong\.thresholds must map fields of the method"):
        open_thresholds(Wrong())


def test_methods_are_refused_before_any_runs():
    policy, pool = GamePolicy(), GamePool()
    methods = {"best of 5": BestOfN(), "retry": Retry()}
    with pytest.raises(UserError, match=r"^retry_below has no value"):
        arm.evaluate(methods, policy, lambda states: [0.0] * len(states), pool, [game(0)])
    assert policy.asked == []
