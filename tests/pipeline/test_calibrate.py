"""Stage `calibrate`: thresholds that are chosen on training tasks, and used by `evaluate`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import shutil
from typing import ClassVar

import pytest

import agentrm_jax as arm
from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.registry import load_family
from agentrm_jax.evaluation.calibration import CalibrateConfig, Calibration
from agentrm_jax.evaluation.config import EvaluateConfig
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.evaluation.rows import read_rows
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.config import (
    REWARD_KINDS,
    EnvironmentConfig,
    ExpertsConfig,
    ExploreConfig,
    RunConfig,
)
from agentrm_jax.pipeline.policy_kinds import POLICIES, PolicyKind, register_policy
from agentrm_jax.pipeline.reward_kinds import RewardKind, register_reward_kind
from agentrm_jax.pipeline.stages import stages_of
from agentrm_jax.pipeline.tasks import Tasks
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.search.methods import METHODS, register_method
from agentrm_jax.search.retry import Retry
from agentrm_jax.search.rollouts import rollouts

ASKED: list[str] = []
"""The task of each request to the policy."""


class Interrupted(Exception):
    """Ends a run in the middle."""


def wander(state, n, seed):
    """Takes the expert's way with breaks, other ones if there are notes; a note for a question."""
    ASKED.append(state.task.task_id)
    if len(ASKED) == LIMIT[0]:
        raise Interrupted
    draw = random.Random(f"{seed} {state.first_observation}")
    if "What went wrong" in state.first_observation:
        return [f"I shall hurry in {draw.choice(['every', 'a'])} step."] * n
    way = load_family("maze").demonstrate(state.task) or []
    made = sum(step.action != "look" for step in state.steps)
    return [f"Action: {'look' if draw.random() < 0.4 else way[made].action}" for _ in range(n)]


LIMIT = [0]


def score(states):
    """A score that tells a success apart nearly always."""
    drawn = [random.Random(str([step.action for step in s.steps])).random() for s in states]
    return [0.95 if s.success else 0.9 * x for s, x in zip(states, drawn, strict=True)]


@pytest.fixture
def config(monkeypatch) -> RunConfig:
    for registry in (METHODS, REWARD_KINDS, POLICIES):
        monkeypatch.setattr(registry, "_registered", {})
    ASKED.clear()
    LIMIT[0] = 0

    @register_policy("wander")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wander(PolicyKind):
        def open(self, options):
            return arm.FunctionPolicy(wander)

    @register_reward_kind("drawn")
    class Drawn(RewardKind):
        def open(self, policy):
            return arm.FunctionScorer(score)

    @register_reward_kind("comparing")
    class Comparing(RewardKind):
        compares: ClassVar[bool] = True

        def open(self, policy):
            return arm.FunctionScorer(score)

    @register_method("gated")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Gated:
        """Takes the first sample after `skip` with a score of at least `least`."""

        thresholds: ClassVar = {"skip": (0, 2), "least": (0.1, 0.99)}

        skip: int | None = None
        least: float | None = None

        def run(self, policy, scorer, envs, tasks, seed):
            for task in tasks:
                found = list(rollouts(policy, envs, [(task, self.skip), (task, self.skip + 1)]))
                found.sort(key=lambda each: each.sample)
                scores = [scorer.score([[each.trajectory]])[0][0] for each in found]
                cost = sum(each.policy_tokens for each in found)
                answer = found[0] if scores[0] >= self.least else found[1]
                yield dataclasses.replace(answer, policy_tokens=cost)

    register_method("retrying")(Retry)
    return RunConfig(
        environments=[EnvironmentConfig(name="maze", prompt=False, max_steps=10)],
        agent=Wander(),
        rewards=("drawn",),
        train_policy=False,
        experts=ExpertsConfig(num_tasks=5),
        explore=ExploreConfig(num_tasks=4),
        calibrate=CalibrateConfig(num_tasks=12),
        evaluate=EvaluateConfig(
            num_tasks=4,
            n=2,
            methods=("best_of_n", "retrying", "gated"),
            options={"retrying": Retry(num_attempts=2)},
        ),
    )


def run_all(config: RunConfig, folder: pathlib.Path) -> RunPaths:
    runner.run_all(config, folder)
    return RunPaths(folder)


def outcomes(paths: RunPaths, name: str, label: str) -> dict[str, float]:
    found = read_rollouts(paths.calibration(name, label).rollouts)
    return {r.trajectory.task.task_id: r.trajectory.outcome for r in found}


def test_a_run_chooses_thresholds_on_training_tasks_and_uses_them(config, tmp_path, capsys):
    paths = run_all(config, tmp_path / "run")
    assert [stage.name for stage in stages_of(config)] == ["calibrate", "evaluate"]
    retrying, gated = read_rows(paths.thresholds, Calibration)
    assert (retrying["name"], gated["name"]) == ("retrying", "gated")
    assert [c["thresholds"]["retry_below"] for c in retrying["candidates"]] == [
        0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
    ]  # fmt: skip
    assert len(gated["candidates"]) == 4

    tasks = Tasks(config)
    problems = {task.problem for task in (*tasks.experts, *tasks.explored, *tasks.test)}
    wanted = {task.task_id for task in tasks.calibration}
    assert len(wanted) == 12
    assert problems.isdisjoint(task.problem for task in tasks.calibration)
    means = {}
    for candidate in retrying["candidates"]:
        found = outcomes(paths, "retrying", f"retry_below={candidate['thresholds']['retry_below']}")
        assert found.keys() == wanted
        means[candidate["thresholds"]["retry_below"]] = candidate["score_mean"]
        assert candidate["score_mean"] == pytest.approx(sum(found.values()) / 12)
    assert len(set(means.values())) > 1
    chosen = retrying["chosen"]["retry_below"]
    assert outcomes(paths, "gated", "skip=2,least=0.99").keys() == wanted

    policy = arm.FunctionPolicy(wander, seed=config.seed)
    method = Retry(num_attempts=2, retry_below=chosen)
    direct = method.run(policy, arm.FunctionScorer(score), arm.EnvPool(), tasks.test, 0)
    evaluated = read_rollouts(paths.method("retrying").rollouts)
    assert {r.trajectory.task.task_id: r.search for r in evaluated} == {
        r.trajectory.task.task_id: r.search for r in direct
    }
    [stage, _] = read_json(paths.report)["stages"]
    assert stage["stage"] == "calibrate"
    assert f"retrying retry_below={chosen}; gated skip=" in stage["summary"]["chosen"]
    assert stage["summary"]["tasks_trained_on"] == 0
    rows = [row for row in read_json(paths.results) if row["task"] == row["split"] == "all"]
    assert {row.get("options") for row in rows if row["method"] == "retrying"} == {"num_attempts=2"}

    more = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, num_tasks=5))
    shutil.rmtree(paths.stage("evaluate"))
    capsys.readouterr()
    runner.run_all(more, tmp_path / "run")
    assert "calibrate: done before" in capsys.readouterr().out
    other = dataclasses.replace(config, calibrate=CalibrateConfig(num_tasks=13))
    with pytest.raises(UserError, match=r"calibrate\.num_tasks = 12, but it is now 13"):
        runner.run_all(other, tmp_path / "run")


def test_thresholds_are_chosen_for_each_place_and_used_with_every_seed(config, tmp_path):
    evaluate = dataclasses.replace(
        config.evaluate,
        methods=("retrying",),
        score_at=("observation", "action"),
        sampling_seeds=(1, 2),
    )
    small = dataclasses.replace(config, evaluate=evaluate, calibrate=CalibrateConfig(num_tasks=4))
    paths = run_all(small, tmp_path / "run")
    found = {entry["name"]: entry["chosen"] for entry in read_rows(paths.thresholds, Calibration)}
    assert list(found) == ["retrying", "retrying@action"]
    for name in ("retrying+seed1", "retrying@action+seed2"):
        assert len(list(read_rollouts(paths.method(name).rollouts))) == 4


def test_an_interrupted_calibration_resumes(config, tmp_path):
    whole = run_all(config, tmp_path / "whole")
    asked = len(ASKED)
    LIMIT[0] = asked + asked // 2
    with pytest.raises(Interrupted):
        run_all(config, tmp_path / "run")
    LIMIT[0] = 0
    paths = run_all(config, tmp_path / "run")
    assert read_json(paths.thresholds) == read_json(whole.thresholds)
    assert len(ASKED) - asked < asked * 1.2  # what was stored was not run again


def test_evaluation_waits_for_calibration(config, tmp_path):
    with pytest.raises(UserError, match="calibrate has not ended yet; give `agentrm calibrate`"):
        runner.run_stage(config, tmp_path, "evaluate")
    runner.run_stage(config, tmp_path, "calibrate")
    thresholds = RunPaths(tmp_path).thresholds
    thresholds.write_text(json.dumps(read_json(thresholds)[:1]))
    with pytest.raises(UserError, match=r"thresholds\.json: has .* another sha256"):
        runner.run_stage(config, tmp_path, "evaluate")


def test_thresholds_that_are_set_need_no_calibration(config, tmp_path):
    options = {"retrying": Retry(retry_below=0.5, num_attempts=2)}
    evaluate = dataclasses.replace(config.evaluate, methods=("retrying",), options=options)
    fixed = dataclasses.replace(config, evaluate=evaluate)
    assert [stage.name for stage in stages_of(fixed)] == ["evaluate"]
    with pytest.raises(UserError, match="calibrate: not a stage of this configuration"):
        runner.run_stage(fixed, tmp_path, "calibrate")


def test_explored_tasks_are_used_if_the_split_has_no_others(config, monkeypatch):
    """Then those of the expert; a run without any trained environment has none."""
    listed = Tasks._listed
    monkeypatch.setattr(
        Tasks, "_listed", lambda self, *given: listed(self, *given)[:11]
    )  # the split has 11 tasks: 5 of the expert, 4 that are explored, 2 others
    tasks = Tasks(config)
    found = [task.problem for task in tasks.calibration]
    assert len(found) == 11
    assert found[2:] == [task.problem for task in (*tasks.explored, *tasks.experts)]
    held_out = [EnvironmentConfig(name="maze", prompt=False, train=False)]
    assert Tasks(dataclasses.replace(config, environments=held_out)).calibration == []


def test_a_run_that_trains_on_nothing_is_refused(config, tmp_path):
    held_out = [EnvironmentConfig(name="maze", prompt=False, train=False)]
    with pytest.raises(UserError, match="environments are all held out, so that no tasks are left"):
        run_all(dataclasses.replace(config, environments=held_out), tmp_path)


def test_a_reward_model_that_compares_cannot_trigger_retries(config):
    with pytest.raises(UserError, match=r"compares whole .* must be without retrying"):
        dataclasses.replace(config, rewards=("comparing",))
    options = {"retrying": Retry(uses_score=False)}
    evaluate = dataclasses.replace(config.evaluate, methods=("retrying",), options=options)
    dataclasses.replace(config, rewards=("comparing",), evaluate=evaluate)
