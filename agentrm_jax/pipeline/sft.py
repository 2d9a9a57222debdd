"""Stage `sft`: fine-tunes the policy on the replies of the experts (paper section 3.1)."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.sequences import sft_sequences
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.model.parameters import cast
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.fit_model import FitSummary, Training, fit_model, training_rows
from agentrm_jax.pipeline.losses import MASTER, loaded_dtype, sft_loss
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import MODEL
from agentrm_jax.train.sft import describe


class SftSummary(FitSummary):
    """The summary of stage `sft`.

    Attributes:
      parameters: Number of parameters of the policy.
      trajectories: Expert trajectories.
      rows: Packed rows that were trained on.
      truncated_steps: Steps that were removed because they did not fit into a row.
    """

    parameters: int
    trajectories: int
    rows: int
    truncated_steps: int


def sft(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> SftSummary:
    """Trains the policy: from `policy` if it is given, else `model` from nothing."""
    config = workspace.config
    trajectories = list(open_trajectories(workspace.paths.experts))
    start = _start(workspace, trajectories)
    longest = min(config.sft.fit.length, start.config.longest)
    rows = training_rows(
        lambda some: sft_sequences(
            start.tokenizer,
            workspace.prompts,
            some,
            longest,
            refused=not config.experts.mistakes,
        ),
        trajectories,
        lambda trajectory: trajectory.task.task_id,
        "sft",
        config,
    )
    loss = sft_loss(config, start.config, workspace.mesh)
    training = Training(start=start, loss=loss, rows=rows, config=config.sft, describe=describe)
    params, last = fit_model(workspace, stage, "sft", training)
    trained = dataclasses.replace(start, params=cast(params, config.dtype))
    models.save(directory / MODEL, "policy", trained)
    return {
        "parameters": _size(params),
        "trajectories": len(trajectories),
        "rows": len(rows.trained),
        "truncated_steps": rows.truncated,
        **last,
    }


def _start(workspace: Workspace, trajectories: Sequence[Trajectory]) -> Model:
    """The policy before training."""
    config, mesh = workspace.config, workspace.mesh
    if config.policy is not None:
        dtype = loaded_dtype(config, config.sft)
        return models.load_policy(pathlib.Path(config.policy), dtype, mesh)
    tokenizer = train_tokenizer(_texts(trajectories), config.model.vocab_size)
    context = max(config.engine.context, config.sft.fit.length)
    return models.fresh_policy(config.model, tokenizer, context, MASTER, mesh, config.seed)


def _texts(trajectories: Sequence[Trajectory]) -> list[str]:
    """All texts that a policy reads and writes."""
    return [
        text
        for trajectory in trajectories
        for text in (
            trajectory.first_observation,
            *(t for s in trajectory.steps for t in (s.reply, s.transition.observation)),
        )
    ]


def _size(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
