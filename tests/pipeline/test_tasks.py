"""The lists of tasks of a run: what follows from which seed."""

from __future__ import annotations

import pathlib

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
