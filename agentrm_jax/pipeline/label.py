"""Stage `label`: takes the values of states from the stored trees (paper section 3.2)."""

from __future__ import annotations

import pathlib
from typing import TypedDict

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.states import write_labels
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.stage_files import stage_ended
from agentrm_jax.search import labels


class LabelSummary(TypedDict):
    """The summary of stage `label`; `value_mean` is the weighted mean of all labels."""

    paths: int
    states: int
    states_per_tree: float
    value_mean: float


def label(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> LabelSummary:
    """Labels the states of all trees.

    Raises:
      UserError: No state has a label.
    """
    folder, config = workspace.paths.trees, workspace.config.label
    stored = TreeStore.read(folder, finished=stage_ended(folder)).values()
    ordered = sorted(stored, key=lambda tree: tree.task.task_id)  # not as environments were ready
    trees = labels.chosen_trees(ordered, config.num_trees)
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
