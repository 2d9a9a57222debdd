"""Best-of-n against sampling and choosing by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from random_game import GamePolicy, GamePool, draw, game

from agentrm_jax.core.errors import UserError
from agentrm_jax.search.best_of_n import BestOfN, best_of_n, choose_best
from agentrm_jax.search.rollouts import rollouts

TASKS = [game(i) for i in range(5)]
N = 4


def score(trajectory) -> float:
    """Coarse, so that there are ties."""
    return round(draw("score", *(step.reply for step in trajectory.steps)), 1)


def scores(states):
    return [score(state) for state in states]


def timeless(rollout):
    return dataclasses.replace(rollout, wall_seconds=0.0)


def results(pool=None, scorer=scores, concurrency=64) -> list[BestOfN]:
    pool = pool or GamePool()
    found = best_of_n(GamePolicy(), scorer, pool, TASKS, n=N, concurrency=concurrency)
    assert pool.episodes == {}
    return found


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_the_best_of_the_samples_is_chosen(concurrency):
    """The first of equals; the samples are those of `rollouts`, whatever runs at the same time."""
    found = results(concurrency=concurrency)
    assert [result.task for result in found] == TASKS
    samples = {
        (r.trajectory.task.task_id, r.sample): timeless(r)
        for r in rollouts(GamePolicy(), GamePool(), TASKS, n=N)
    }
    assert len(samples) == len(TASKS) * N
    for result in found:
        expected = [samples[result.task.task_id, sample] for sample in range(N)]
        assert [timeless(r) for r in result.rollouts] == expected
        own = [score(r.trajectory) for r in expected]
        assert result.scores == tuple(own)
        assert result.chosen == own.index(max(own))
        assert result.rollout is result.rollouts[result.chosen]
        assert result.trajectory is result.rollout.trajectory


def test_a_broken_trajectory_is_chosen_only_if_all_broke():
    pool = GamePool(lambda task, actions: len(actions) == 2 and draw("b", *actions) < 0.6)
    found = results(pool, scorer=lambda states: [float(not s.done) for s in states])
    whole = [[r.error is None for r in result.rollouts] for result in found]
    assert any(any(own) and not all(own) for own in whole)
    for result, own in zip(found, whole, strict=True):
        assert result.rollout.error is None or not any(own)


def test_an_undecided_reward_model_chooses_nothing():
    def undecided(states):
        odd = states[0].task == TASKS[1]
        return [math.nan if odd else 1.0 for _ in states]

    found = results(scorer=undecided)
    assert [result.chosen is None for result in found] == [task == TASKS[1] for task in TASKS]
    assert found[1].rollout is None
    assert found[1].trajectory is None
    assert np.isnan(found[1].scores).all()


def test_a_policy_function_with_a_seed():
    """Its seed follows from the run's seed, task and sample: another seed, other trajectories."""

    def policy(state, n, seed):
        return [f"Action: go {'NESW'[(seed + k) % 4]}" for k in range(n)]

    def run(seed):
        found = best_of_n(policy, scores, GamePool(), TASKS, n=N, seed=seed)
        return [[timeless(r) for r in result.rollouts] for result in found]

    assert run(0) == run(0) != run(1)


def test_no_tasks_and_numbers_out_of_range():
    assert best_of_n(GamePolicy(), scores, GamePool(), []) == []
    assert choose_best([], scores) == []
    for name in ("n", "concurrency"):
        with pytest.raises(UserError, match=rf"{name} must be at least 1 \(got 0\)"):
            best_of_n(GamePolicy(), scores, GamePool(), TASKS, **{name: 0})


def test_a_task_that_is_given_twice_is_refused():
    with pytest.raises(UserError, match=r"task_id must be unique \(got game/0 twice\)"):
        best_of_n(GamePolicy(), scores, GamePool(), [game(0), game(0)])
