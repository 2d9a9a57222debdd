"""Stage `label`: values of states, from search trees (paper section 3.2) or logged trajectories."""

from __future__ import annotations

import pathlib
from typing import TypedDict

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import printable
from agentrm_jax.data.states import write_labels
from agentrm_jax.data.trees import TreeRecord, TreeStore
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.stage_files import stage_ended
from agentrm_jax.search import labels
from agentrm_jax.search.logged_trees import trees_of_trajectories


class LabelSummary(TypedDict):
    """The summary of stage `label`.

    Attributes:
      paths: Paths from a root to a leaf that hold a label.
      states: States with a label.
      states_per_tree: Mean number of labelled states of a tree.
      value_mean: Weighted mean of all labels, in [0, 1].
    """

    paths: int
    states: int
    states_per_tree: float
    value_mean: float


def label(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> LabelSummary:
    """Labels the states of all trees, or of logged trajectories.

    Raises:
      UserError: No state has a label, or a file of trajectories is refused.
    """
    config = workspace.config.label
    stored = _logged_trees(workspace) if workspace.config.trajectories else _stored_trees(workspace)
    trees = labels.chosen_trees(stored, config.num_trees)
    labelled = [tree for tree in labels.label(trees, config) if tree.num_labels]
    if not labelled:
        failed = [tree.error for tree in trees if tree.error is not None]
        reason = (
            f"{len(failed)} of {len(trees)} trees failed, the first with: {failed[0]}"
            if failed
            else f"no state was visited label.min_visits = {config.min_visits} times"
        )
        raise UserError(f"no state of the trees has a label: {reason}")
    write_labels(workspace.paths.labels, labelled)
    branches = [(tree, branch) for tree in labelled for branch in tree.branches()]
    values = np.array([tree.values[node] for tree, branch in branches for node in branch.nodes])
    weights = np.array([weight for _, branch in branches for weight in branch.weights])
    return {
        "paths": len(branches),
        "states": int(np.sum(weights > 0)),
        "states_per_tree": float(np.sum(weights > 0) / len(trees)),
        "value_mean": float(np.average(values, weights=weights)),
    }


def _stored_trees(workspace: Workspace) -> list[TreeRecord]:
    """The search trees of the run, in the order of their tasks and not as they were ready."""
    folder = workspace.paths.trees
    stored = TreeStore.read(folder, finished=stage_ended(folder)).values()
    return sorted(stored, key=lambda tree: tree.task.task_id)


def _logged_trees(workspace: Workspace) -> list[TreeRecord]:
    """The trees of the trajectories that the configuration names.

    Raises:
      UserError: A file is damaged, an outcome is missing, or an environment is not in the
        configuration, which has the prompts.
    """
    names = [environment.registered for environment in workspace.config.environments]
    found: list[Trajectory] = []
    for path in workspace.config.trajectories:
        found += read_trajectories(
            path,
            names[0] if len(names) == 1 else None,
            unregistered=names,
            outcomes_required=True,
        )
    for trajectory in found:
        if trajectory.task.environment not in names:
            raise UserError(
                f"holds trajectories of {printable(trajectory.task.environment)}, which "
                "`environments` does not name",
                field="trajectories",
            )
    if len({round(trajectory.outcome, 6) for trajectory in found}) == 1:
        raise UserError(
            f"holds {len(found)} trajectories that all have the outcome {found[0].outcome:g}; a "
            "reward model learns from their differences",
            field="trajectories",
        )
    return trees_of_trajectories(found)
