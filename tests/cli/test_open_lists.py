"""A test-time method and a kind of reward model that are registered from outside, in a real run."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import pytest
from cli_cases import CONFIG

from agentrm_jax.evaluation.config import EvaluateConfig
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.config import REWARD_KINDS
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.reward_kinds import RewardKind, register_reward_kind
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.search.methods import METHODS, register_method
from agentrm_jax.search.rollouts import rollouts


@pytest.fixture
def registered(monkeypatch):
    """The two classes; the lists are as before after the test."""
    monkeypatch.setattr(METHODS, "_registered", {})
    monkeypatch.setattr(REWARD_KINDS, "_registered", {})

    @register_method("best_of_two")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class BestOfTwo:
        """The better of two trajectories whose sample numbers begin at `first`."""

        first: int = 0

        def run(self, policy, scorer, envs, tasks, seed):
            for task in tasks:
                pair = list(rollouts(policy, envs, [(task, self.first), (task, self.first + 1)]))
                [scores] = scorer.score([[each.trajectory for each in pair]])
                best = pair[scores.index(max(scores))]
                yield dataclasses.replace(
                    best, sample=0, policy_tokens=sum(each.policy_tokens for each in pair)
                )

    @register_reward_kind("length")
    class Length(RewardKind):
        """Prefers long trajectories."""

        def open(self, policy):
            return self

        def score(self, groups):
            return [[float(len(t.steps)) for t in group] for group in groups]

        def cost(self, group):
            return 0

    return BestOfTwo


def test_both_run_and_are_reported(finished: pathlib.Path, tmp_path, registered, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    paths = RunPaths(copy)
    shutil.rmtree(paths.stage("evaluate"))
    config = load_config(CONFIG, ())
    config = dataclasses.replace(
        config,
        rewards=("length",),
        evaluate=EvaluateConfig(
            num_tasks=8, n=3, methods=("best_of_n", "best_of_two"),
            options={"best_of_two": registered(first=3)}, sampling=config.evaluate.sampling,
        ),
    )  # fmt: skip
    runner.run_stage(config, copy, "evaluate")
    runner.report(config, copy)
    assert "best of two (first=3), length" in " ".join(capsys.readouterr().out.split())
    rows = [row for row in read_json(paths.results) if (row["task"], row["split"]) == ("all",) * 2]
    found = {(row["method"], row["reward_model"], row.get("options")) for row in rows}
    assert {("best_of_n", "length", None), ("best_of_two", "length", "first=3")} <= found
    assert paths.method("best_of_two").rollouts.exists()
    pairs = {(c["a"], c["b"]) for c in read_json(paths.report)["comparisons"]}
    assert ("best_of_two", "random_of_n") in pairs
    scores = {row["reward_model"] for row in read_json(paths.method("best_of_n").scores)}
    assert scores == {"length"}
    again = dataclasses.replace(config.evaluate, options={"best_of_two": registered(first=4)})
    with pytest.raises(Exception, match=r"evaluate.options.best_of_two.first = 3, but it is now 4"):
        runner.report(dataclasses.replace(config, evaluate=again), copy)
