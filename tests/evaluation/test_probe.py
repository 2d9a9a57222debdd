"""The probe of last observations: ends that say what happened, and ends that do not."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from report_cases import step, task, tree

from agentrm_jax.core.records import Trajectory
from agentrm_jax.evaluation.probe import (
    Ending,
    area_under_curve,
    ending_of,
    logistic_regression,
    predictions,
    probe_rows,
    tree_endings,
)


def endings(name: str, say, tasks: int = 40, each: int = 5) -> list[Ending]:
    generator = random.Random(name)
    found = []
    for number in range(tasks):
        for _ in range(each):
            success = generator.random() < 0.4
            text = say(success, number, generator)
            found.append(Ending(environment=name, task_id=f"{name}/{number}", observation=text,
                                success=success))  # fmt: skip
    return found


def told(success, number, generator):
    return "The task is completed." if success else "You see a red door and a ball."


def untold(success, number, generator):
    return " ".join(
        generator.choices(["you", "see", "a", "red", "green", "blue", "door", "ball", "box"], k=6)
    )


def test_ends_that_say_what_happened_are_found() -> None:
    rows = probe_rows([*endings("tells", told), *endings("silent", untold)], "trees")
    assert list(rows) == ["tells", "silent"]
    assert rows["tells"]["auc"] == rows["tells"]["accuracy"] == 1.0
    assert rows["tells"]["gives_away"]
    silent = rows["silent"]
    assert silent["auc"] == pytest.approx(0.5, abs=0.15)
    assert not silent["gives_away"]
    assert (silent["n"], silent["n_tasks"], silent["source"]) == (200, 40, "trees")
    rate = sum(e.success for e in endings("silent", untold)) / 200
    assert silent["success_rate"] == pytest.approx(rate)
    assert silent["majority"] == pytest.approx(max(rate, 1 - rate))


def test_what_an_environment_declares_stands_in_its_row() -> None:
    found = [*endings("tells", told), *endings("silent", untold)]
    rows = probe_rows(found, "trees", {"tells": True, "silent": None}.__getitem__)
    assert (rows["tells"]["declared"], rows["silent"]["declared"]) == (True, None)
    assert probe_rows(found, "trees")["tells"]["declared"] is None


def test_words_of_a_task_do_not_count() -> None:
    """Tasks that are always solved or never, and name themselves: other tasks tell nothing."""
    found = [
        Ending(environment="e", task_id=f"e/{n}", observation=f"room{n}", success=n % 3 == 0)
        for n in range(40)
        for _ in range(5)
    ]
    row = probe_rows(found, "samples")["e"]
    assert not row["gives_away"]
    assert row["auc"] is not None
    assert row["auc"] < 0.6


def test_too_little_to_learn_from_is_no_finding() -> None:
    few = endings("few", told, tasks=3)
    lost = [Ending(environment="lost", task_id=str(n), observation="x", success=False)
            for n in range(50)]  # fmt: skip
    for row in probe_rows([*few, *lost], "trees").values():
        assert (row["auc"], row["accuracy"], row["gives_away"]) == (None, None, False)


def test_area_under_the_curve_counts_pairs() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 60).astype(float)
    solved = (generator.random(60) < 0.3).astype(float)
    right = total = 0.0
    for a, x in zip(scores, solved, strict=True):
        for b, y in zip(scores, solved, strict=True):
            if x > y:
                total += 1
                right += 1.0 if a > b else 0.5 if a == b else 0.0
    assert area_under_curve(scores, solved) == pytest.approx(right / total)


def test_weights_equal_those_of_plain_gradient_descent() -> None:
    generator = np.random.default_rng(1)
    features = [[1.0, *map(float, generator.integers(0, 2, 3))] for _ in range(30)]
    solved = [float(row[1] + row[2] + generator.normal() > 1) for row in features]
    weights = [0.0] * 4
    for _ in range(3000):
        gradient = [0.0, *weights[1:]]
        for row, y in zip(features, solved, strict=True):
            logit = sum(w * x for w, x in zip(weights, row, strict=True))
            error = 1 / (1 + math.exp(-logit)) - y
            gradient = [g + error * x for g, x in zip(gradient, row, strict=True)]
        weights = [w - 0.1 * g for w, g in zip(weights, gradient, strict=True)]
    found = logistic_regression(np.array(features), np.array(solved))
    assert found == pytest.approx(weights, abs=1e-6)


def test_separated_outcomes_have_finite_weights() -> None:
    features = np.array([[1.0, i % 2] for i in range(200)])
    weights = logistic_regression(features, features[:, 1])
    assert np.isfinite(weights).all()
    assert weights[1] > 3


def test_predictions_use_other_folds_only() -> None:
    texts = ["yes", "no"] * 20
    solved = np.array([1.0, 0.0] * 20)
    folds = np.repeat([0, 1], 20)
    flipped = np.where(folds == 1, 1 - solved, solved)
    # Fold 0 has learned from fold 1, where the words mean the opposite.
    found = predictions(texts, flipped, folds)
    assert ((found > 0.5) != (flipped == 1)).all()


def test_ends_of_trees_and_trajectories() -> None:
    found = tree_endings(tree("You see a red door."))
    assert [(e.task_id, e.success) for e in found] == [
        (task().task_id, True),
        (task().task_id, False),
    ]
    steps = (step("a", "first"), step("b", "last", reward=1.0, done=True))
    trajectory = Trajectory(task=task(), first_observation="go", steps=steps)
    assert ending_of(trajectory) == Ending(
        environment="babyai", task_id=task().task_id, observation="last", success=True
    )
