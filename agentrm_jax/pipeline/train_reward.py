"""Stage `train-rm`: regresses values of states from the policy's trunk (paper section 3.3)."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import section
from agentrm_jax.data.manipulated_trees import manipulated_trees
from agentrm_jax.data.packing import PackedRows, only_labelled
from agentrm_jax.data.sequences import value_sequences
from agentrm_jax.data.state_parts import reduced_tree
from agentrm_jax.data.states import open_labels
from agentrm_jax.data.tree_sequences import tree_sequences
from agentrm_jax.model.heads import head_to_json
from agentrm_jax.model.parameters import cast
from agentrm_jax.model.value import init_reward
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.fit_model import FitSummary, Training, fit_model, training_rows
from agentrm_jax.pipeline.losses import loaded_dtype, reward_loss
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.train_config import RewardTrainConfig
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import MODEL
from agentrm_jax.train import explicit
from agentrm_jax.train.ranking import count_pairs


class _OptionalOfReward(FitSummary, total=False):
    sibling_pairs: int
    sibling_pairs_separated: int


class RewardSummary(_OptionalOfReward):
    """The summary of stage `train-rm`.

    Attributes:
      rows: Packed rows that were trained on.
      truncated_labels: Labels of truncated steps.
      target_mean: Weighted mean of the labels, in [0, 1].
      sibling_pairs: Pairs of siblings that share a row; with a ranking loss only.
      sibling_pairs_separated: Pairs that packing has put into different rows.
    """

    rows: int
    truncated_labels: int
    target_mean: float


def train_reward(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> RewardSummary:
    """Trains the explicit reward model on labelled states."""
    config = workspace.config
    dtype = loaded_dtype(config, config.train_rm)
    policy = workspace.models.policy(dtype)
    trees = [reduced_tree(t, config.state_parts) for t in open_labels(workspace.paths.labels)]
    problems = frozenset(tree.task.problem for tree in trees)
    if config.train_rm.manipulated:
        trees += manipulated_trees(trees, config.train_rm.manipulated, config.seed)
    sequences_of = {"paths": value_sequences, "trees": tree_sequences}[config.train_rm.packing]
    longest = min(config.train_rm.fit.length, policy.config.longest)
    ranking, predicts = config.train_rm.ranking, config.train_rm.observation_loss > 0
    rows = training_rows(
        lambda some: sequences_of(policy.tokenizer, workspace.prompts, some, longest),
        trees,
        lambda tree: tree.task.task_id,
        "train_rm",
        config,
    ).map(functools.partial(_weighted_ends, config.train_rm))
    rows = rows.map(
        functools.partial(only_labelled, siblings=ranking.weight > 0, predicted=predicts)
    )
    start, mean = _start(workspace, policy, rows.trained, problems)
    if predicts and "lm_head" in policy.params:
        start.params["trunk"]["lm_head"] = policy.params["lm_head"]
    training = Training(
        start=start,
        loss=reward_loss(config, start.config, workspace.mesh),
        rows=rows,
        config=config.train_rm,
        describe=explicit.describe,
    )
    params, last = fit_model(workspace, stage, "train-rm", training)
    params["trunk"] = cast(params["trunk"], config.dtype)
    params["trunk"].pop("lm_head", None)
    models.save(directory / MODEL, "reward", dataclasses.replace(start, params=params))
    summary: RewardSummary = {
        "rows": len(rows.trained),
        "truncated_labels": rows.truncated,
        "target_mean": mean,
        **last,
    }
    if ranking.weight:
        together, separated = count_pairs(ranking, rows.trained)
        summary["sibling_pairs"] = together
        summary["sibling_pairs_separated"] = separated
    return summary


def _weighted_ends(config: RewardTrainConfig, rows: PackedRows) -> PackedRows:
    """Returns the rows with the factors of both ends of steps in their weights."""
    assert rows.siblings is not None
    factors = np.where(rows.siblings % 2, config.action_weight, config.observation_weight)
    factors = np.where(rows.siblings, factors, 1.0)  # the root has one end
    return dataclasses.replace(rows, weights=rows.weights * factors.astype(np.float32))


def _start(
    workspace: Workspace, policy: Model, rows: PackedRows, problems: frozenset[str]
) -> tuple[Model, float]:
    """The reward model before training, and the weighted mean of its targets."""
    config = workspace.config
    weights, targets = rows.weights, rows.targets
    mean = float(np.sum(weights * targets) / np.sum(weights))
    head = config.train_rm.head
    head_to_json(head)  # refuses a head that could not be stored, before it is trained
    with section("train_rm.head"):
        head.check_targets(targets[weights > 0])
    if config.reward_init is None:
        params = init_reward(policy.params, mean, head)
        trained_on = problems
    else:
        initial = workspace.models.reward_init(loaded_dtype(config, config.train_rm))
        params = initial.params
        trained_on = None if initial.trained_on is None else problems | initial.trained_on
    if not config.train_rm.head_bias:
        params["value_head"]["bias"] = jnp.zeros_like(params["value_head"]["bias"])
    start = dataclasses.replace(policy, params=params, head=head, trained_on=trained_on)
    return start, mean
