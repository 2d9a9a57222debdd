"""Trains the model of a stage: packed rows, progress bar, checkpoints, LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, cast

import jax

from agentrm_jax.core.errors import section
from agentrm_jax.data.packing import PackedRows, pack
from agentrm_jax.data.sequences import TokenSequence
from agentrm_jax.model import lora
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.train_config import TrainConfig
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.processes import is_first
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import CHECKPOINTS
from agentrm_jax.train import held_out
from agentrm_jax.train.fit import FitConfig, FitInputs, fit
from agentrm_jax.train.step import LossFn
from agentrm_jax.train.trainable import make_trainable

_SHOWN = ("loss", "held_out_loss", "accuracy", "correlation", "sibling_accuracy")
"""Metrics next to the progress bar."""


class FitSummary(TypedDict, total=False):
    """The last row of metrics of a training stage, and totals; the loss decides which keys.

    Attributes:
      updates: Number of updates.
      loss: Mean loss of the last updates.
      accuracy: Fraction of right predictions: next tokens in `sft`, pairs in `train-implicit`.
      squared_error: Mean squared error of the values.
      correlation: Correlation of values and targets; 0 if one of them hardly varies.
      ranking_loss: Mean loss of pairs of siblings.
      sibling_accuracy: Fraction of the pairs whose better sibling has the higher value.
      observation_loss: Mean loss of the tokens of observations.
      value: Mean value.
      target: Mean target.
      grad_norm: Norm of the gradient before it is clipped.
      held_out_loss: Loss on held-out tasks, at the checkpoint that was kept.
      best_update: Update of that checkpoint.
      tokens_per_second: Tokens that were trained on in a second.
      compile_seconds: Seconds of compilation.
    """

    updates: int
    loss: float
    accuracy: float
    squared_error: float
    correlation: float
    ranking_loss: float
    sibling_accuracy: float
    observation_loss: float
    value: float
    target: float
    grad_norm: float
    held_out_loss: float
    best_update: int
    tokens_per_second: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRows:
    """Packed rows of a training stage.

    Attributes:
      trained: Rows that are trained on.
      held_out: Rows of other tasks, which decide the best checkpoint; None if there are none.
      truncated: The number of truncated steps, or of their labels.
    """

    trained: PackedRows
    held_out: PackedRows | None
    truncated: int

    def map(self, change: Callable[[PackedRows], PackedRows]) -> TrainingRows:
        """Returns the rows with both parts changed."""
        held_out = self.held_out and change(self.held_out)
        return dataclasses.replace(self, trained=change(self.trained), held_out=held_out)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training stage before its first update.

    Attributes:
      start: The model that training starts from.
      loss: What is minimised.
      rows: The rows.
      config: The settings of the stage.
      describe: Turns the weighted means of the loss's sums into a row of metrics.
    """

    start: Model
    loss: LossFn
    rows: TrainingRows
    config: TrainConfig
    describe: Callable[[dict[str, float]], dict[str, float]] = dict


def training_rows(
    sequences: Callable[[Any], tuple[list[TokenSequence], int]],
    examples: Sequence[Any],
    task_of: Callable[[Any], str],
    key: str,
    config: RunConfig,
) -> TrainingRows:
    """Packs the sequences of examples; held-out tasks get rows of their own.

    Args:
      sequences: Makes the sequences of examples; returns also how many steps did not fit.
      examples: The examples.
      task_of: The task of an example.
      key: The section of `config` that holds the settings of the stage.
      config: The configuration of the run.

    Raises:
      UserError: Nothing fits into a row.
    """
    with section(f"{key}.fit"):
        return pack_rows(sequences, examples, task_of, getattr(config, key).fit, config.seed)


def pack_rows(
    sequences: Callable[[Any], tuple[list[TokenSequence], int]],
    examples: Sequence[Any],
    task_of: Callable[[Any], str],
    fit_config: FitConfig,
    seed: int,
) -> TrainingRows:
    """Packs the sequences of examples; held-out tasks get rows of their own.

    Args:
      sequences: Makes the sequences of examples; returns also how many steps did not fit.
      examples: The examples.
      task_of: The task of an example.
      fit_config: Settings of the training loop; `held_out` and `length` are read.
      seed: The seed, on which it depends which tasks are held out.

    Raises:
      UserError: Nothing fits into a row, or there are too few tasks to hold some of them out.
    """
    held: Sequence[Any] = ()
    if fit_config.held_out:
        examples, held = held_out.split(examples, task_of, fit_config.held_out, seed)
    made, truncated = sequences(examples)
    apart = sequences(held)[0] if held else None
    return TrainingRows(
        trained=pack(made, fit_config.length),
        held_out=None if apart is None else pack(apart, fit_config.length),
        truncated=truncated,
    )


def fit_model(
    workspace: Workspace, stage: Stage, name: str, training: Training
) -> tuple[Any, FitSummary]:
    """Trains with a progress bar; checkpoints lie in the folder of the stage.

    Returns:
      The trained parameters and the last row of metrics.
    """
    config, rows, start = training.config, training.rows, training.start
    total = config.fit.total(len(rows.trained))
    key = jax.random.key(workspace.config.seed)
    model = make_trainable(
        start.params,
        training.loss,
        config.lora,
        lambda: lora.init_adapters(key, start.config, config.lora, workspace.mesh),
    )
    fit_key = f"{name.replace('-', '_')}.fit"
    with section(fit_key), stage.progress(name, total) as bar:
        done = 0

        def on_update(update: int, total: int, row: dict[str, float]) -> None:
            nonlocal done
            shown = {key: row[key] for key in _SHOWN if key in row}
            bar.advance(update - done, **shown)
            done = update

        params, last = fit(
            FitInputs(
                model=model,
                rows=rows.trained,
                config=config.fit,
                optimizer=config.optimizer,
                directory=workspace.paths.stage(name) / CHECKPOINTS,
                mesh=workspace.mesh,
                seed=workspace.config.seed,
                metrics=workspace.metrics(name),
                held_out=rows.held_out,
                describe=training.describe,
                stop_at=stage.budget.ends,
                on_update=on_update,
            )
        )
    params = model.merged(params)
    if "loss" not in last and is_first():  # killed after its last checkpoint: nothing was left
        written = read_metrics(workspace.paths.metrics)
        row = [row for row in written if row["stage"] == name][-1]
        last |= {key: row[key] for key in row if key not in ("stage", "update", "seconds")}
    return params, cast(FitSummary, last)
