"""Stage `experts`: the trajectories that the policy is trained on first."""

from __future__ import annotations

import pathlib
from typing import TypedDict

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage


class ExpertsSummary(TypedDict):
    """The summary of stage `experts`.

    Attributes:
      trajectories: Trajectories that were written: those that solve their task.
      tasks: Tasks that the experts tried, or imported trajectories.
      success_rate: Fraction of the tasks that were solved.
      replies_without_action: Steps whose reply has no action.
      steps_mean: Mean number of steps of a trajectory.
      refused_actions: Steps whose action the environment refused.
    """

    trajectories: int
    tasks: int
    success_rate: float
    replies_without_action: int
    steps_mean: float
    refused_actions: int


def experts(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> ExpertsSummary:
    """Asks the experts for trajectories, or takes imported ones; writes those that succeed.

    Raises:
      UserError: None of the imported trajectories succeeds.
    """
    if workspace.config.experts.imported:
        imported = list(workspace.tasks.imported_trajectories())
        solved, asked = [t for t in imported if t.success], len(imported)
        if not solved:
            raise UserError("holds no trajectory that succeeds", field="experts.imported")
    else:
        tasks = workspace.tasks.experts
        asked = len(tasks)
        with stage.progress("experts", asked) as bar:
            mistakes = workspace.config.experts.mistakes
            found = expert_trajectories(workspace.pool, tasks, bar.advance, mistakes=mistakes)
            solved = list(found)
    write_trajectories(workspace.paths.experts, solved)
    return {
        "trajectories": len(solved),
        "tasks": asked,
        "success_rate": len(solved) / asked,
        "replies_without_action": sum(not s.action for t in solved for s in t.steps),
        "steps_mean": float(np.mean([len(t.steps) for t in solved])),
        "refused_actions": sum(t.invalid_actions for t in solved),
    }
