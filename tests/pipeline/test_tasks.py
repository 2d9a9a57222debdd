"""The lists of tasks of a run: what follows from which seed."""

from __future__ import annotations

import pathlib

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.tasks import Tasks

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tiny.yaml"


def tasks(*settings: str) -> Tasks:
    return Tasks(load_config(CONFIG, list(settings)))


def test_training_seeds_can_share_their_test_tasks() -> None:
    first, other = tasks(), tasks("--seed=5")
    shared = tasks("--seed=5", "--evaluate.task_seed=0")
    assert other.test != first.test
    assert shared.test == first.test
    assert shared.experts == other.experts != first.experts
    assert shared.overlap() == 0


def test_an_expert_that_takes_all_tasks_leaves_none_to_explore(monkeypatch) -> None:
    listed = Tasks._listed
    monkeypatch.setattr(Tasks, "_listed", lambda self, *given: listed(self, *given)[:11])
    with pytest.raises(UserError, match=r"experts\.num_tasks must be below 11: it takes all"):
        _ = tasks("--experts.num_tasks=11").explored
    assert len(tasks("--experts.num_tasks=10").explored) == 1
