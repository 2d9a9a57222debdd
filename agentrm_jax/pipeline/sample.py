"""Stage `sample`: whole trajectories, which an implicit reward model is trained on."""

from __future__ import annotations

import pathlib
from typing import TypedDict

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.pipeline.acting import AgentName, open_policy
from agentrm_jax.pipeline.shared_rollouts import shared_rollouts
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.stage_files import FileRecord, stage_ended, stage_files
from agentrm_jax.search.rollouts import Rollout, rollouts


class RolloutSummary(TypedDict):
    """Counts over all rollouts.

    Attributes:
      trajectories: Number of rollouts.
      errors: Rollouts whose environment failed for good.
      failed_candidates: Turns whose environment failed; another one was sampled in their place.
      replies_without_action: Steps whose reply has no action.
      mean_outcome: Mean return of the rollouts, in [0, 1].
    """

    trajectories: int
    errors: int
    failed_candidates: int
    replies_without_action: int
    mean_outcome: float


class SampleSummary(RolloutSummary, AgentName):
    """The summary of stage `sample`.

    Attributes:
      tokens_decoded: Tokens that the policy decoded since the last start.
      tokens_read: Tokens that it read since the last start.
      files: The JSON files of the stage, by name.
    """

    tokens_decoded: int
    tokens_read: int
    files: dict[str, FileRecord]


def sample(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> SampleSummary:
    """Runs the policy to the end several times on each task that `explore` would search."""
    config, path = workspace.config.sample, workspace.paths.samples
    policy = open_policy(workspace)
    stage.activity.counts = policy.counts
    with stage.waiting("compile"):
        agent = policy.agent(config.sampling, concurrency=config.concurrency)
    tasks = workspace.tasks.explored
    shared_rollouts(
        "sample",
        path,
        [(task, number) for task in tasks for number in range(config.num_samples)],
        lambda missing: rollouts(agent, workspace.pool, missing, concurrency=config.concurrency),
        stage,
        folder=directory,
        concurrency=config.concurrency,
    )
    counts = stage.group.total(
        {"tokens_decoded": policy.tokens_decoded, "tokens_read": policy.tokens_read}
    )
    summary: RolloutSummary = stage.group.once("summary", lambda: _rollout_summary(path))
    return {
        **summary,
        "tokens_decoded": counts["tokens_decoded"],
        "tokens_read": counts["tokens_read"],
        **policy.name,
        "files": stage.group.once("files", lambda: stage_files(directory)),
    }


def _rollout_summary(path: pathlib.Path) -> RolloutSummary:
    found = list(read_rollouts(path))
    sound = [rollout.trajectory for rollout in found if rollout.error is None]
    if not sound:
        raise UserError(
            f"no trajectory was sampled: every environment failed, the first with: {found[0].error}"
        )
    return {
        "trajectories": len(sound),
        "errors": len(found) - len(sound),
        "failed_candidates": sum(rollout.failed_candidates for rollout in found),
        "replies_without_action": sum(rollout.replies_without_action for rollout in found),
        "mean_outcome": float(np.mean([trajectory.outcome for trajectory in sound])),
    }


def sampled_trajectories(paths: RunPaths) -> list[list[Trajectory]]:
    """Returns the trajectories of each task that stage `sample` wrote, failed ones left out.

    They are in the order of tasks and samples, not in the order in which they ended.
    """
    groups: dict[str, list[Rollout]] = {}
    finished = stage_ended(paths.stage("sample"))
    for rollout in read_rollouts(paths.samples, finished=finished):
        if rollout.error is None:
            groups.setdefault(rollout.trajectory.task.task_id, []).append(rollout)
    return [
        [r.trajectory for r in sorted(groups[task_id], key=lambda r: r.sample)]
        for task_id in sorted(groups)
    ]
