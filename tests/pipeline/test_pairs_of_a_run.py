"""Stages that a run needs for each kind of pairs that an implicit reward model learns from."""

from __future__ import annotations

import pathlib

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.stages import STAGES, stages_of

TINY = pathlib.Path(__file__).parents[2] / "configs" / "tiny.yaml"
IMPLICIT = ["--rewards=[implicit]", "--train_implicit.objective.loss=dpo"]
NEEDED = {
    "trajectories": ["sample"],
    "siblings": ["explore", "label"],
    "exchanged": [],
    "siblings_and_exchanged": ["explore", "label"],
}


@pytest.mark.parametrize("pairs", NEEDED)
def test_a_run_has_the_stages_that_its_pairs_need(pairs):
    config = load_config(TINY, [*IMPLICIT, f"--train_implicit.pairs={pairs}"])
    names = [stage.name for stage in stages_of(config)]
    assert names == ["experts", "sft", *NEEDED[pairs], "train-implicit", "evaluate"]
    (training,) = (stage for stage in STAGES if stage.name == "train-implicit")
    experts = ["experts"] if "exchanged" in pairs else []
    assert list(training.inputs(config)) == ["sft", *experts, *NEEDED[pairs][-1:]]


def test_experts_are_needed_for_a_policy_that_is_not_trained(tmp_path):
    given = [*IMPLICIT, f"--policy={tmp_path}", "--train_policy=false"]
    for pairs, stage in (("exchanged", "experts"), ("trajectories", "sample")):
        config = load_config(TINY, [*given, f"--train_implicit.pairs={pairs}"])
        assert [s.name for s in stages_of(config)] == [stage, "train-implicit", "evaluate"]


def test_exchanged_pairs_need_a_loss_over_pairs(tmp_path):
    with pytest.raises(UserError, match=r"pairs needs objective\.loss: dpo"):
        load_config(TINY, ["--rewards=[implicit]", "--train_implicit.pairs=exchanged"])
    config = load_config(TINY, [*IMPLICIT, "--train_implicit.pairs=exchanged"])
    with pytest.raises(UserError, match=r"train_implicit\.pairs is exchanged, not trajectories"):
        runner.run_stage(config, tmp_path / "run", "sample")
