"""Training of a reward model from Python: on search trees, labelled trees or logged trajectories.

The stage `train-rm` of a run does the same with the keys of its configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError, section
from agentrm_jax.core.records import Prompt, Trajectory
from agentrm_jax.data.packing import PackedRows, only_labelled
from agentrm_jax.data.sequences import TokenSequence, value_sequences
from agentrm_jax.data.states import LabelledTree
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.envs.registry import environment_names, load_family
from agentrm_jax.model.heads import MSE, ValueHead, head_to_json
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.model.value import init_reward
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.fit_model import TrainingRows, pack_rows
from agentrm_jax.pipeline.losses import MASTER
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.model_folders import Prompts, check_prompts, find_model, write_prompts
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.reward_model import RewardModel
from agentrm_jax.runtime.json_files import same_settings, write_json_atomic
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.run_paths import CHECKPOINTS, METRICS, MODEL
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.search.best_of_n import BestOfN
from agentrm_jax.search.labels import label_trajectories, label_tree
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.train import explicit
from agentrm_jax.train.fit import FitConfig, FitInputs
from agentrm_jax.train.fit import fit as run_fit
from agentrm_jax.train.optimizer import OptimizerConfig
from agentrm_jax.train.trainable import Trainable

Example = TreeRecord | LabelledTree | Trajectory
"""What a reward model learns from."""

_SETTINGS = "training.json"
_LONGEST = 4096
_FRESH_CONTEXT = 2048
_SHOWN = ("loss", "held_out_loss", "correlation")  # next to the progress bar

_RATE_OF_NEW = 1e-3
"""Learning rate of a new model; the default of `OptimizerConfig` is for a pretrained one."""


def train_reward_model(
    examples: Sequence[Example],
    output: str | os.PathLike[str],
    *,
    init: str | os.PathLike[str] | ModelConfig | None = None,
    prompts: Mapping[str, Prompt | None] | None = None,
    head: ValueHead | None = None,
    fit: FitConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    seed: int = 0,
) -> RewardModel:
    """Trains a reward model of states and saves it.

    An interrupted training resumes if it is called again with the same arguments; one that has
    ended is loaded. No environment is needed.

    Args:
      examples: Search trees (`explore`), labelled trees (`label`), or finished trajectories, whose
        states all have the outcome as value. They may be mixed.
      output: Folder to write: `model/` (what `RewardModel.load` and `agentrm export` read),
        `prompts.json` and `metrics.jsonl`.
      init: Policy that the reward model starts from: a folder (as of `ModelPolicy.load`), or the
        sizes of a new model, whose tokenizer is trained on the examples. None: sizes of about a
        million parameters.
      prompts: Prompts by environment; None as a value: the model reads no prompt there.
        Environments that are not named have their registered prompt, or none.
      head: The value head; default: `MSE()`, the paper's.
      fit: The training loop; default: three epochs of batches of 8 rows as long as the longest
        example. With `held_out` the parameters are those of the checkpoint with the smallest loss
        on the held-out tasks.
      optimizer: The optimizer; default: a learning rate of 1e-5 for an `init` that is a folder, and
        of 1e-3 for a new model.
      seed: Seed of a new model, of the order of rows and of the choice of held-out tasks.

    Returns:
      The trained reward model.

    Raises:
      UserError: There are no labels, an outcome is not in [0, 1], the folder holds something else
        or the training of other arguments, or a setting is refused.
    """
    directory, trees = pathlib.Path(output), list(_labelled(examples))
    if not any(tree.num_labels for tree in trees):
        raise UserError(f"examples must hold a labelled state; {_without_labels(examples)}")
    new = init is None or isinstance(init, ModelConfig)
    if optimizer is None:
        optimizer = OptimizerConfig(learning_rate=_RATE_OF_NEW) if new else OptimizerConfig()
    head = head or MSE()
    known = _prompts(trees, prompts or {})
    settings = {
        "init": dataclasses.asdict(init) if isinstance(init, ModelConfig) else init and str(init),
        "prompts": {name: prompt and dataclasses.asdict(prompt) for name, prompt in known.items()},
        "head": head_to_json(head),
        "fit": fit and dataclasses.asdict(fit),
        "optimizer": dataclasses.asdict(optimizer),
        "seed": seed,
        "examples": _digest(trees),
    }
    _claim(directory, json.loads(json.dumps(settings)))
    if not models.is_model_directory(directory / MODEL):
        write_prompts(directory, known)
        mesh = make_mesh(MeshConfig())
        policy = _start(init, trees, fit, mesh, seed)
        rows, fit = _rows(policy, Prompts(known), trees, fit, seed)
        model = _untrained(policy, head, rows.trained, trees)
        _train(directory, model, rows, fit, optimizer, mesh, seed)
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return RewardModel.load(directory)


_TRAJECTORIES_OF = {
    Rollout: ", whose trajectory is rollout.trajectory",
    BestOfN: ", whose trajectories are [rollout.trajectory for rollout in answer.rollouts]",
}


def _without_labels(examples: Sequence[Example]) -> str:
    errors = [tree.error for tree in examples if isinstance(tree, TreeRecord) and tree.error]
    if not errors:
        return "none of them has one"
    return f"{len(errors)} of {len(examples)} ended by an error, the first: {errors[0]}"


def _labelled(examples: Sequence[Example]) -> Iterator[LabelledTree]:
    logged = [example for example in examples if isinstance(example, Trajectory)]
    for example in examples:
        match example:
            case TreeRecord():
                yield label_tree(example)
            case LabelledTree():
                yield example
            case Trajectory():
                pass
            case _:
                raise UserError(
                    "examples must be trees, labelled trees or trajectories "
                    f"(got {type(example).__name__}{_TRAJECTORIES_OF.get(type(example), '')})"
                )
    yield from label_trajectories(logged)  # equal beginnings share their value


def _prompts(
    trees: Sequence[LabelledTree], given: Mapping[str, Prompt | None]
) -> dict[str, Prompt | None]:
    """The prompts of all environments of the trees, and those that were given."""
    check_prompts(given)
    names = {tree.task.environment for tree in trees} - set(given)
    registered = names & set(environment_names())
    found = {name: load_family(name).prompt() if name in registered else None for name in names}
    return dict(sorted({**found, **given}.items()))


def _digest(trees: Sequence[LabelledTree]) -> str:
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(json.dumps(dataclasses.asdict(tree), sort_keys=True).encode())
    return digest.hexdigest()


def _claim(directory: pathlib.Path, settings: dict[str, Any]) -> None:
    """Records the settings in the folder, or compares them with those that it has.

    Raises:
      UserError: They differ, or the folder holds something else.
    """
    path = directory / _SETTINGS
    if same_settings(path, settings, "a training"):
        return
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory}: is not empty; choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, settings)


def _start(
    init: str | os.PathLike[str] | ModelConfig | None,
    trees: Sequence[LabelledTree],
    fit: FitConfig | None,
    mesh: Mesh,
    seed: int,
) -> Model:
    """The policy that training starts from, in float32."""
    if init is not None and not isinstance(init, ModelConfig):
        return models.load_policy(find_model(init, "policy").directory, MASTER, mesh)
    config = init or ModelConfig()
    tokenizer = train_tokenizer(_texts(trees), config.vocab_size)
    context = max(_FRESH_CONTEXT, fit.length if fit else 0)
    return models.fresh_policy(config, tokenizer, context, MASTER, mesh, seed)


def _texts(trees: Sequence[LabelledTree]) -> list[str]:
    return [
        text
        for tree in trees
        for text in (
            tree.first_observation,
            *(t for step in tree.steps for t in (step.reply, step.transition.observation)),
        )
    ]


def _rows(
    start: Model,
    prompts: Prompts,
    trees: Sequence[LabelledTree],
    fit: FitConfig | None,
    seed: int,
) -> tuple[TrainingRows, FitConfig]:
    """The packed rows of all trees, and the loop with the length of the rows."""
    longest = min(fit.length if fit else _LONGEST, start.config.longest)

    def sequences(some: Sequence[LabelledTree]) -> tuple[list[TokenSequence], int]:
        return value_sequences(start.tokenizer, prompts, some, longest)

    if fit is None:
        length = max(len(sequence.tokens) for sequence in sequences(trees)[0])
        fit = FitConfig(length=min(longest, -(-length // 64) * 64), batch_size=8)
    labelled = [tree for tree in trees if tree.num_labels]
    with section("fit"):
        rows = pack_rows(sequences, labelled, lambda tree: tree.task.task_id, fit, seed)
    return rows.map(only_labelled), fit


def _untrained(
    policy: Model, head: ValueHead, rows: PackedRows, trees: Sequence[LabelledTree]
) -> Model:
    """A reward model with the policy's trunk that predicts the mean of the labels."""
    labelled = rows.weights > 0
    head.check_targets(rows.targets[labelled])
    mean = float(np.sum(rows.weights * rows.targets) / np.sum(rows.weights))
    return dataclasses.replace(
        policy,
        params=init_reward(policy.params, mean, head),
        head=head,
        trained_on=frozenset(tree.task.problem for tree in trees),
    )


def _train(
    directory: pathlib.Path,
    model: Model,
    rows: TrainingRows,
    fit: FitConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    seed: int,
) -> None:
    """Trains a reward model from where it starts, and saves it."""
    options = ForwardOptions(mesh=mesh, attention=fit.attention, remat=fit.remat)
    loss = explicit.make_loss(model.config, options, head=model.head)
    with progress("train-reward", fit.total(len(rows.trained))) as bar:
        done = 0

        def on_update(update: int, total: int, row: dict[str, float]) -> None:
            nonlocal done
            bar.advance(update - done, **{key: row[key] for key in _SHOWN if key in row})
            done = update

        params, _ = run_fit(
            FitInputs(
                model=Trainable(params=model.params, loss_fn=loss),
                rows=rows.trained,
                held_out=rows.held_out,
                config=fit,
                optimizer=optimizer,
                directory=directory / CHECKPOINTS,
                mesh=mesh,
                seed=seed,
                metrics=MetricWriter(directory / METRICS, "train-reward"),
                describe=explicit.describe,
                on_update=on_update,
            )
        )
    models.save(directory / MODEL, "reward", dataclasses.replace(model, params=params))
