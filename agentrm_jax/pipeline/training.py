"""The stages that train a model on what the stages before them wrote."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import UserError, section
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.packing import PackedRows, only_labelled, pack
from agentrm_jax.data.pairs import preference_pairs
from agentrm_jax.data.sequences import (
    TokenSequence,
    outcome_sequences,
    pair_sequences,
    sft_sequences,
    tree_sequences,
    value_sequences,
)
from agentrm_jax.data.states import open_paths
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.model import lora
from agentrm_jax.model.heads import head_to_json
from agentrm_jax.model.parameters import cast
from agentrm_jax.model.value import init_reward
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.config import RunConfig, TrainConfig
from agentrm_jax.pipeline.losses import (
    MASTER,
    forward_options,
    implicit_loss,
    loaded_dtype,
    reward_loss,
    sft_loss,
)
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.playing import sampled_trajectories
from agentrm_jax.pipeline.workspace import DATASET, Run, Summary
from agentrm_jax.runtime.array_files import read_array, write_array
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.processes import from_first, is_first
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.train import explicit, held_out, implicit
from agentrm_jax.train.fit import FitInputs, fit
from agentrm_jax.train.step import LossFn
from agentrm_jax.train.trainable import make_trainable

_SHOWN = ("loss", "held_out_loss", "accuracy", "correlation")  # beside the progress bar


def train_policy(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Fine-tunes the policy on the experts' replies (paper section 3.1)."""
    trajectories = list(open_trajectories(run.directory / "experts" / DATASET))
    config = run.config
    if config.policy is not None:
        start = models.load_policy(
            pathlib.Path(config.policy), loaded_dtype(config, config.sft), run.mesh
        )
    else:
        tokenizer = train_tokenizer(_texts(trajectories), config.model.vocab_size)
        context = max(config.engine.context, config.sft.fit.length)
        start = models.fresh_policy(config.model, tokenizer, context, MASTER, run.mesh, config.seed)
    longest = min(config.sft.fit.length, start.config.longest)
    rows = _rows(
        lambda some: sft_sequences(start.tokenizer, run.prompt_of, some, longest),
        trajectories,
        lambda trajectory: trajectory.task.task_id,
        "sft",
        config,
    )
    loss = sft_loss(config, start.config, run.mesh)
    params, last = _fit(run, stage, "sft", start, loss, rows, config.sft, directory)
    trained = dataclasses.replace(start, params=cast(params, config.dtype))
    models.save(directory / "model", "policy", trained)
    return {
        "parameters": _size(params),
        "trajectories": len(trajectories),
        "rows": len(rows.trained),
        "steps_left_out": rows.left_out,
        **last,
    }


def train_reward(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Regresses values of states from the policy's trunk (paper section 3.3)."""
    config = run.config
    dtype = loaded_dtype(config, config.train_rm)
    model = run.policy(dtype)
    paths = open_paths(run.directory / "states" / DATASET)
    problems = frozenset(path.trajectory.task.problem for path in paths)
    sequences_of = {"paths": value_sequences, "trees": tree_sequences}[config.train_rm.packing]
    longest = min(config.train_rm.fit.length, model.config.longest)
    rows = _rows(
        lambda some: sequences_of(model.tokenizer, run.prompt_of, some, longest),
        paths,
        lambda path: path.trajectory.task.task_id,
        "train_rm",
        config,
    ).map(only_labelled)
    weights, targets = rows.trained.weights, rows.trained.targets
    mean = float(np.sum(weights * targets) / np.sum(weights))
    head = config.train_rm.head
    head_to_json(head)  # refuses a head that could not be stored, before it is trained
    with section("train_rm.head"):
        head.check_targets(targets[weights > 0])
    if config.reward_init is None:
        start = init_reward(model.params, mean, head)
        trained_on = problems
    else:
        initial = run.reward_init(dtype)
        start = initial.params
        trained_on = None if initial.trained_on is None else problems | initial.trained_on
    if not config.train_rm.head_bias:
        start["value_head"]["bias"] = jnp.zeros_like(start["value_head"]["bias"])
    model = dataclasses.replace(model, params=start, head=head, trained_on=trained_on)
    loss = reward_loss(config, model.config, run.mesh)
    params, last = _fit(
        run, stage, "train-rm", model, loss, rows, config.train_rm, directory, explicit.describe
    )
    params["trunk"] = cast(params["trunk"], config.dtype)
    models.save(directory / "model", "reward", dataclasses.replace(model, params=params))
    counts = {"rows": len(rows.trained), "labels_left_out": rows.left_out}
    return {**counts, "target_mean": mean, **last}


def train_implicit(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Trains the policy further, so that its log-ratio to itself before tells outcomes (paper
    section 3.3)."""
    config = run.config.train_implicit
    model = run.policy(loaded_dtype(run.config, config))
    longest = min(config.fit.length, model.config.longest)

    def sequences(groups: Sequence[Sequence[Trajectory]]) -> tuple[list[TokenSequence], int]:
        if config.objective.loss != "dpo":
            trajectories = [trajectory for group in groups for trajectory in group]
            return outcome_sequences(model.tokenizer, run.prompt_of, trajectories, longest)
        pairs = preference_pairs(groups)
        if not pairs:
            raise UserError("sample: no two trajectories of a task differ in outcome")
        return pair_sequences(model.tokenizer, run.prompt_of, pairs, longest)

    rows = _rows(
        sequences,
        sampled_trajectories(run),
        lambda group: group[0].task.task_id,
        "train_implicit",
        run.config,
    )
    rows = _with_reference(run, model, rows, directory)
    loss = implicit_loss(run.config, model.config, run.mesh)
    describe = dict if config.objective.loss == "dpo" else explicit.describe
    params, last = _fit(
        run, stage, "train-implicit", model, loss, rows, config, directory, describe
    )
    trained = dataclasses.replace(model, params=cast(params, run.config.dtype))
    models.save(directory / "model", "policy", trained)
    return {"rows": len(rows.trained), "steps_left_out": rows.left_out, **last}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """What is trained on, what is held out, and how much did not fit into a row."""

    trained: PackedRows
    held_out: PackedRows | None
    left_out: int

    def map(self, change: Callable[[PackedRows], PackedRows]) -> _Rows:
        held_out = self.held_out and change(self.held_out)
        return dataclasses.replace(self, trained=change(self.trained), held_out=held_out)


def _rows(
    sequences: Callable[[Any], tuple[list[TokenSequence], int]],
    examples: Sequence[Any],
    task_of: Callable[[Any], str],
    key: str,
    config: RunConfig,
) -> _Rows:
    """Rows of the examples' sequences, those of some tasks apart.

    Args:
      key: The section of `config` that holds the stage's settings.
    """
    fit = getattr(config, key).fit
    held: Sequence[Any] = ()
    with section(f"{key}.fit"):
        if fit.held_out:
            examples, held = held_out.split(examples, task_of, fit.held_out, config.seed)
        made, left_out = sequences(examples)
        apart = sequences(held)[0] if held else None
    return _Rows(
        trained=pack(made, fit.length),
        held_out=None if apart is None else pack(apart, fit.length),
        left_out=left_out,
    )


def _with_reference(run: Run, model: Model, rows: _Rows, directory: pathlib.Path) -> _Rows:
    """The rows with the log-probabilities of the policy as it is now as targets of its tokens."""

    def known(part: PackedRows, name: str) -> PackedRows:
        return implicit.with_reference(part, _reference(run, model, part, directory / name))

    return dataclasses.replace(
        rows,
        trained=known(rows.trained, "reference.npz"),
        held_out=rows.held_out and known(rows.held_out, "reference_held_out.npz"),
    )


def _reference(run: Run, model: Model, rows: PackedRows, path: pathlib.Path) -> np.ndarray:
    """The policy's own log-probabilities of the rows, [R, T]; computed once and kept."""
    if from_first(path.exists):
        return read_array(path)
    config = run.config.train_implicit
    options = dataclasses.replace(
        forward_options(run.config, config, run.mesh), remat="none", dtype=None
    )
    with progress("reference", len(rows), shown=is_first()) as bar:
        found = implicit.reference_log_probs(
            cast(model.params, run.config.dtype),
            model.config,
            rows,
            config.fit.batch_size // config.fit.accumulation,
            options,
            on_rows=bar.advance,
        )
    if is_first():
        write_array(path, found)
    return found


def _fit(
    run: Run,
    stage: Stage,
    name: str,
    start: Model,
    loss: LossFn,
    rows: _Rows,
    config: TrainConfig,
    directory: pathlib.Path,
    describe: Callable[[dict[str, float]], dict[str, float]] = dict,
) -> tuple[Any, Summary]:
    """Trains with a progress bar; checkpoints in the stage's folder."""
    total = config.fit.total(len(rows.trained))
    key = jax.random.key(run.config.seed)
    model = make_trainable(
        start.params,
        loss,
        config.lora,
        lambda: lora.init_adapters(key, start.config, config.lora, run.mesh),
    )
    fit_key = f"{name.replace('-', '_')}.fit"
    with section(fit_key), progress(name, total, shown=is_first()) as bar:
        seen = 0

        def on_update(update: int, total: int, row: dict[str, float]) -> None:
            nonlocal seen
            shown = {key: row[key] for key in _SHOWN if key in row}
            bar.advance(update - seen, **shown)
            seen = update
            stage.tick()

        params, last = fit(
            FitInputs(
                model=model,
                rows=rows.trained,
                config=config.fit,
                optimizer=config.optimizer,
                directory=directory / "checkpoints",
                mesh=run.mesh,
                seed=run.config.seed,
                metrics=run.metrics(name),
                held_out=rows.held_out,
                describe=describe,
                on_update=on_update,
            )
        )
    params = model.merged(params)
    if "loss" not in last and is_first():  # killed behind its last checkpoint: all was done
        written = read_metrics(run.directory / "metrics.jsonl")
        row = [row for row in written if row["stage"] == name][-1]
        last |= {key: row[key] for key in row if key not in ("stage", "update", "seconds")}
    return params, last


def _texts(trajectories: Sequence[Trajectory]) -> list[str]:
    """All that a policy reads and says."""
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
