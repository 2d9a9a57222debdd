"""Stage `train-implicit`: trains the policy further, so that the log-ratio to the policy before it
predicts outcomes (paper section 3.3)."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.exchanged import exchanged_pairs, words_by_place
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.data.pairs import Pair, preference_pairs, sibling_pairs
from agentrm_jax.data.sequences import TokenSequence, outcome_sequences, pair_sequences
from agentrm_jax.data.states import LabelledTree, open_labels
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.model.parameters import cast
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.fit_model import (
    FitSummary,
    Training,
    TrainingRows,
    fit_model,
    training_rows,
)
from agentrm_jax.pipeline.losses import forward_options, implicit_loss, loaded_dtype
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.sample import sampled_trajectories
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.array_files import read_array, write_array
from agentrm_jax.runtime.processes import from_first, is_first
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import MODEL
from agentrm_jax.train import explicit, implicit


class ImplicitSummary(FitSummary):
    """The summary of stage `train-implicit`.

    Attributes:
      rows: Packed rows that were trained on.
      truncated_steps: Steps that were removed because they did not fit into a row.
    """

    rows: int
    truncated_steps: int


def train_implicit(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> ImplicitSummary:
    """Trains the implicit reward model on outcomes of trajectories, or on pairs of actions.

    Raises:
      UserError: The loss needs pairs, and there are none.
    """
    config = workspace.config.train_implicit
    model = workspace.models.policy(loaded_dtype(workspace.config, config))
    rows = _rows(workspace, model)
    training = Training(
        start=model,
        loss=implicit_loss(workspace.config, model.config, workspace.mesh),
        rows=_with_reference(workspace, stage, model, rows, directory),
        config=config,
        describe=dict if config.objective.loss == "dpo" else explicit.describe,
    )
    params, last = fit_model(workspace, stage, "train-implicit", training)
    trained = dataclasses.replace(model, params=cast(params, workspace.config.dtype))
    models.save(directory / MODEL, "policy", trained)
    return {"rows": len(rows.trained), "truncated_steps": rows.truncated, **last}


def _rows(workspace: Workspace, model: Model) -> TrainingRows:
    """The packed rows: of sampled trajectories or pairs of them, or of siblings of search trees."""
    config = workspace.config.train_implicit
    longest = min(config.fit.length, model.config.longest)

    def outcomes(groups: Sequence[Sequence[Trajectory]]) -> tuple[list[TokenSequence], int]:
        trajectories = [trajectory for group in groups for trajectory in group]
        return outcome_sequences(model.tokenizer, workspace.prompts, trajectories, longest)

    def compared(some: Sequence[Any]) -> tuple[list[TokenSequence], int]:
        return pair_sequences(model.tokenizer, workspace.prompts, pairs_of(some), longest)

    examples, pairs_of, key, reason = _pairs(workspace)
    paired = config.objective.loss == "dpo"
    if paired and not pairs_of(examples):
        raise UserError(
            f"must be larger or train_implicit.objective.loss another: no {reason}",
            field=key,
        )

    def task_of(example: Any) -> str:
        whole = isinstance(example, LabelledTree | Trajectory)
        return (example if whole else example[0]).task.task_id

    sequences = compared if paired else outcomes
    return training_rows(sequences, examples, task_of, "train_implicit", workspace.config)


def _pairs(
    workspace: Workspace,
) -> tuple[Sequence[Any], Callable[[Sequence[Any]], list[Pair]], str, str]:
    """Examples and their pairs; the key to change if there are no pairs, and the reason."""
    kind, seed = workspace.config.train_implicit.pairs, workspace.config.seed
    if kind == "trajectories":
        samples = sampled_trajectories(workspace.paths)
        reason = "two sampled trajectories of a task differ in value"
        return samples, preference_pairs, "sample.num_samples", reason
    trees = open_labels(workspace.paths.labels) if kind != "exchanged" else ()
    if kind == "siblings":
        reason = "two actions in one state of the search trees differ in value"
        return trees, sibling_pairs, "explore.num_tasks", reason
    experts = list(open_trajectories(workspace.paths.experts))
    words = words_by_place(experts)

    def pairs_of(some: Sequence[Any]) -> list[Pair]:
        played = [each for each in some if isinstance(each, Trajectory)]
        searched = [each for each in some if isinstance(each, LabelledTree)]
        return [*sibling_pairs(searched), *exchanged_pairs(played, words, seed)]

    reason = "the experts' actions have a word that another could replace"
    return (*trees, *experts), pairs_of, "experts.num_tasks", reason


def _with_reference(
    workspace: Workspace,
    stage: Stage,
    model: Model,
    rows: TrainingRows,
    directory: pathlib.Path,
) -> TrainingRows:
    """The rows with the log-probabilities under the policy before training as targets."""

    def referenced(part: PackedRows, name: str) -> PackedRows:
        log_probs = _reference(workspace, stage, model, part, directory / name)
        return implicit.with_reference(part, log_probs)

    return dataclasses.replace(
        rows,
        trained=referenced(rows.trained, "reference.npz"),
        held_out=rows.held_out and referenced(rows.held_out, "reference_held_out.npz"),
    )


def _reference(
    workspace: Workspace, stage: Stage, model: Model, rows: PackedRows, path: pathlib.Path
) -> np.ndarray:
    """The log-probabilities of the rows under the policy, [R, T]; computed once and stored."""
    if from_first(path.exists):
        return read_array(path)
    config = workspace.config.train_implicit
    options = dataclasses.replace(
        forward_options(workspace.config, config, workspace.mesh), remat="none", dtype=None
    )
    with stage.progress("reference", len(rows)) as bar:
        log_probs = implicit.reference_log_probs(
            cast(model.params, workspace.config.dtype),
            model.config,
            rows,
            config.fit.batch_size // config.fit.accumulation,
            options,
            on_rows=bar.advance,
        )
    if is_first():
        write_array(path, log_probs)
    return log_probs
