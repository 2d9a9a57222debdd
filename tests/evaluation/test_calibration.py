"""The choice among candidates of a threshold, worked by hand and in plain Python."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.evaluation.calibration import (
    CalibrateConfig,
    best_candidate,
    calibrated,
    calibration,
)
from agentrm_jax.evaluation.config import MethodRun
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.search.retry import Retry

RUN = MethodRun(name="retry", method_name="retry", method=Retry(), reward_models=("explicit",))


def plain(outcomes, tokens):
    """The choice as the documentation describes it, in plain Python."""
    n = len(outcomes[0])
    means = [math.fsum(row) / n for row in outcomes]
    best = means.index(max(means))
    cheapest = None
    for c, row in enumerate(outcomes):
        differences = [a - b for a, b in zip(outcomes[best], row, strict=True)]
        mean = math.fsum(differences) / n
        deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
        key = (tokens[c], -means[c], c)
        if mean <= deviation / math.sqrt(n) + 1e-12 and (cheapest is None or key < cheapest):
            cheapest = key
    return cheapest[2]


def test_the_choice_equals_plain_python():
    draw = random.Random(0)
    chosen = []
    for _ in range(300):
        tasks, count = draw.randint(2, 12), draw.randint(1, 6)
        kind = draw.choice([(0.0, 1.0), (0.0, 0.25, 0.5, 1.0)])
        outcomes = [[draw.choice(kind) for _ in range(tasks)] for _ in range(count)]
        tokens = [draw.randint(1, 4) for _ in range(count)]
        chosen.append(best_candidate(np.array(outcomes), tokens))
        assert chosen[-1] == plain(outcomes, tokens)
    assert set(chosen) == set(range(6))


def test_a_difference_within_its_standard_error_goes_to_fewer_tokens():
    """Differences 1, 0, 0, 0: mean 0.25, standard error 0.25. Differences 1, 1, 0, 0: 0.5, 0.289"""
    best, near, far = [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]
    assert best_candidate(np.array([best, near, far], float), [30, 20, 10]) == 1
    assert best_candidate(np.array([best, near, far], float), [20, 30, 10]) == 0
    assert best_candidate(np.array([far, best, near], float), [1, 5, 5]) == 1
    assert best_candidate(np.array([[0.5], [0.4]]), [9, 1]) == 0  # one task has no standard error


def episode(task: int, outcome: float, tokens: int, error: str | None = None) -> Episode:
    return Episode(
        task=Task(environment="game", task_id=f"game/{task}", max_steps=3), method="retry",
        seed=4, sampling_seed=2, outcome=outcome, success=outcome, policy_tokens=tokens,
        reward_tokens=2, env_steps=3, wall_seconds=0.0, steps=3, error=error,
    )  # fmt: skip


def test_every_candidate_is_written_down_and_the_chosen_one_is_used():
    tried = [
        ({"retry_below": 0.2}, [episode(0, 0.0, 5), episode(1, 1.0, 5)]),
        ({"retry_below": 0.9}, [episode(0, 1.0, 7), episode(1, 1.0, 8, "it broke")]),
    ]
    found = calibration(RUN, tried)
    assert found["chosen"] == {"retry_below": 0.2}  # 0.5 lower, within the standard error of 0.5
    assert (found["n_tasks"], found["reward_model"]) == (2, "explicit")
    assert (found["seeds"], found["sampling_seeds"]) == ([4], [2])  # those of the episodes
    first, second = found["candidates"]
    assert (first["score_mean"], first["policy_tokens"], first["errors"]) == (0.5, 10, 0)
    assert (second["policy_tokens"], second["reward_tokens"], second["errors"]) == (15, 4, 1)
    assert second["env_steps"] == 6
    assert first["score_ci95"][0] <= 0.5 <= first["score_ci95"][1]
    [run] = calibrated([RUN], [found])
    assert run.method == Retry(retry_below=0.2)
    assert run.options == RUN.options
    other_seed = dataclasses.replace(RUN, name="retry+seed3", sampling_seed=3)
    assert calibrated([other_seed], [found])[0].method == Retry(retry_below=0.2)
    at_action = dataclasses.replace(RUN, name="retry@action", score_at=("action",))
    with pytest.raises(UserError, match="retry_below has no value"):
        calibrated([at_action], [found])
    fixed = MethodRun(
        name="retry", method_name="retry", method=Retry(retry_below=0.5), reward_models=()
    )
    assert calibrated([fixed], [found]) == [fixed]
    with pytest.raises(UserError, match=r"evaluate\.options\.retry\.retry_below has no value"):
        calibrated([RUN], [])
    with pytest.raises(UserError, match="num_tasks must be at least 2"):
        CalibrateConfig(num_tasks=1)
