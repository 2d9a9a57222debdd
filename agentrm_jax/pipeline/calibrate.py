"""Stage `calibrate`: chooses the thresholds of test-time methods on training tasks.

Each method with a threshold that has no value is run with every candidate value. Stage `evaluate`
takes the values that are chosen here, so that no threshold is ever chosen on test tasks.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluation.calibration import Calibration, calibration, with_thresholds
from agentrm_jax.evaluation.config import MethodRun, method_runs
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.pipeline.acting import ActingPolicy, AgentName, open_policy
from agentrm_jax.pipeline.evaluate import concurrency_of, method_runner
from agentrm_jax.pipeline.scorers import Scorers
from agentrm_jax.pipeline.shared_answers import scored_answers
from agentrm_jax.pipeline.shared_rollouts import shared_rollouts
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.stage_files import FileRecord, stage_files
from agentrm_jax.search.thresholds import threshold_candidates


class CalibrateSummary(AgentName):
    """The summary of stage `calibrate`; tokens are those of the run's own models.

    Attributes:
      tasks: Training tasks on which every candidate was run.
      tasks_trained_on: Tasks whose problem the run trains on as well.
      chosen: The chosen thresholds of all methods as one text.
      tokens_decoded: Tokens that were decoded since the last start.
      tokens_read: Tokens that were read since the last start.
      files: The JSON files of the stage, by name.
    """

    tasks: int
    tasks_trained_on: int
    chosen: str
    tokens_decoded: int
    tokens_read: int
    files: dict[str, FileRecord]


def calibrate(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> CalibrateSummary:
    """Runs the candidates of each method, stores their rollouts and writes the chosen values.

    Raises:
      UserError: No environment is trained on, or a problem is both trained on and tested.
    """
    config, tasks = workspace.config, workspace.tasks
    tasks.check_overlap()
    workspace.models.check_given()
    if not tasks.calibration:
        raise UserError(
            "are all held out, so that no tasks are left to choose thresholds on; set the "
            "thresholds in evaluate.options",
            field="environments",
        )
    policy = open_policy(workspace)
    stage.activity.counts = policy.counts
    scorers = Scorers(policy)
    once = dataclasses.replace(config.evaluate, sampling_seeds=(0,))
    found = [
        _calibrated_method(run, candidates, policy, scorers, stage)
        for run in method_runs(once, config.rewards)
        if (candidates := threshold_candidates(run.method))
    ]
    group = stage.group
    group.once("thresholds", lambda: write_json_atomic(workspace.paths.thresholds, found))
    tokens = group.total(
        {
            "tokens_decoded": policy.tokens_decoded,
            "tokens_read": policy.tokens_read + scorers.tokens_read,
        }
    )
    trained = {task.problem for task in (*tasks.experts, *tasks.explored)}
    return {
        "tasks": len(tasks.calibration),
        "tasks_trained_on": sum(task.problem in trained for task in tasks.calibration),
        "chosen": "; ".join(f"{entry['name']} {_label(entry['chosen'])}" for entry in found),
        "tokens_decoded": tokens["tokens_decoded"],
        "tokens_read": tokens["tokens_read"],
        **policy.name,
        "files": group.once("files", lambda: stage_files(directory)),
    }


def _calibrated_method(
    run: MethodRun,
    candidates: Sequence[Mapping[str, float]],
    policy: ActingPolicy,
    scorers: Scorers,
    stage: Stage,
) -> Calibration:
    tried = [
        (values, _episodes(with_thresholds(run, values), _label(values), policy, scorers, stage))
        for values in candidates
    ]
    return calibration(run, tried)


def _episodes(
    run: MethodRun, label: str, policy: ActingPolicy, scorers: Scorers, stage: Stage
) -> list[Episode]:
    """Runs a method; returns its episodes on all tasks, in order.

    A method that samples first is scored by its first reward model at its first place.
    """
    run = dataclasses.replace(run, reward_models=run.reward_models[:1], score_at=run.score_at[:1])
    workspace, tasks = policy.workspace, policy.workspace.tasks.calibration
    rollouts = shared_rollouts(
        f"{run.name.replace('_', ' ')} {label}",
        workspace.paths.calibration(run.setting, label).rollouts,
        run.episodes(tasks),
        method_runner(run, policy, scorers),
        stage,
        folder=workspace.paths.stage("calibrate"),
        concurrency=concurrency_of(run, workspace),
    )
    answered = scored_answers(run, rollouts, policy, scorers, stage, label=label)
    episodes = {
        episode.task.task_id: episode
        for episode in answered.episodes
        if episode.method == run.method_name
    }
    return [episodes[task.task_id] for task in tasks]


def _label(values: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())
