"""The stages of a run: each reads what the ones before it wrote, and writes a folder of its own.

Every stage goes on where it was when it was interrupted, and ends with the same output.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agentrm_jax.agent.agent import Agent
from agentrm_jax.cli import models
from agentrm_jax.cli.config import RunConfig, TrainConfig
from agentrm_jax.cli.evaluation import evaluate
from agentrm_jax.cli.run import Run
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.metrics import read_metrics
from agentrm_jax.core.progress import progress
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.run_directory import Stage
from agentrm_jax.data.packing import PackedRows, pack
from agentrm_jax.data.sequences import sft_sequences, tree_sequences, value_sequences
from agentrm_jax.data.states import open_paths, write_paths
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trajectories import open_trajectories, write_trajectories
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.engine import Engine
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import cast
from agentrm_jax.model.value import init_reward
from agentrm_jax.search.explore import Explorer
from agentrm_jax.search.labels import labelled_paths
from agentrm_jax.train import explicit, sft
from agentrm_jax.train.fit import fit
from agentrm_jax.train.step import LossFn

Summary = dict[str, Any]

DATASET = "dataset"  # beside the stage's own record

MASTER = "float32"
"""Dtype of the parameters that training updates: steps of a learning rate of 1e-5 would be lost
between two numbers of bfloat16. They are rounded to the run's dtype for each forward pass."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A stage.

    Attributes:
      name: Also the name of its command.
      folder: Its folder in the run's.
      sections: Keys of the configuration that its output depends on, besides those of the stages
        before it.
      wanted: Whether a run with this configuration needs it.
      work: Does it; returns a summary for people.
    """

    name: str
    folder: str
    sections: tuple[str, ...]
    wanted: Callable[[RunConfig], bool]
    work: Callable[[Run, Stage, pathlib.Path], Summary]


def experts(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Asks the experts for trajectories, or takes imported ones; writes those that succeed."""
    if run.config.experts.imported:
        taken = list(run.imported_trajectories())
        found, asked = [t for t in taken if t.success], len(taken)
        if not found:
            raise UserError("experts.imported: none of the trajectories succeeds")
    else:
        tasks, _ = run.train_tasks
        asked = len(tasks)
        with progress("experts", asked) as bar:
            found = list(expert_trajectories(run.pool, tasks, bar.advance))
    write_trajectories(directory / DATASET, found)
    return {
        "trajectories": len(found),
        "tasks": asked,
        "success_rate": len(found) / asked,
        "steps_mean": float(np.mean([len(t.steps) for t in found])),
    }


def train_policy(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Fine-tunes the policy on the experts' replies (paper section 3.1)."""
    trajectories = list(open_trajectories(run.directory / "experts" / DATASET))
    config = run.config
    if config.policy is not None:
        start = models.load_policy(pathlib.Path(config.policy), MASTER, run.mesh)
    else:
        tokenizer = train_tokenizer(_texts(trajectories), config.model.vocab_size)
        context = max(config.engine.context, config.sft.fit.length)
        start = models.fresh_policy(config.model, tokenizer, context, MASTER, run.mesh, config.seed)
    sequences, left_out = sft_sequences(
        start.tokenizer, run.prompt_of, trajectories, config.sft.fit.length
    )
    rows = pack(sequences, config.sft.fit.length)
    loss = sft_loss(config, start.config, run.mesh)
    params, last = _fit(run, stage, "sft", start.params, loss, rows, config.sft, directory)
    trained = dataclasses.replace(start, params=cast(params, config.dtype))
    models.save(directory / "model", "policy", trained)
    return {
        "parameters": _size(params),
        "trajectories": len(trajectories),
        "rows": len(rows),
        "steps_left_out": left_out,
        **last,
    }


def explore(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Grows a search tree for each task (paper section 3.2)."""
    config = run.config.explore
    _, tasks = run.train_tasks
    model = run.policy()
    params = llama.unstacked(model.params, consume=True)
    engine = Engine(params, model.config, run.config.engine, mesh=run.mesh)
    branches = (config.search.expansion_width, 1)  # trees that expand, and those that roll out
    agent = Agent(
        engine, model.tokenizer, run.prompt_of, config.sampling, run.config.seed, branches
    )
    agent.warm_up()
    stored = TreeStore.read(directory)
    store = TreeStore(directory)
    total = len(tasks) * config.search.num_iterations
    done = sum(len(tree.iterations) for tree in stored.values())
    with progress("explore", total, done=done) as bar:

        def on_iteration() -> None:
            bar.advance()
            stage.tick()

        Explorer(agent, run.pool, store, config.search, on_iteration).run(tasks, stored)
    store.close()
    return {
        **_tree_summary(directory),
        "tokens_decoded": engine.usage.decoded,  # by this process, as what follows
        "tokens_read": engine.usage.read,
        "truncated_steps": agent.truncated_steps,
    }


def _tree_summary(directory: pathlib.Path) -> Summary:
    trees = list(TreeStore.read(directory).values())
    iterations = [iteration for tree in trees for iteration in tree.iterations]
    visits = np.concatenate([tree.backed_up()[0] for tree in trees])
    return {
        "trees": len(trees),
        "errors": sum(tree.error is not None for tree in trees),
        "iterations": len(iterations),
        "env_steps": sum(tree.num_nodes - 1 for tree in trees),
        "invalid_actions": sum(
            not node.step.transition.valid for i in iterations for node in i.nodes
        ),
        "states_visited": int(np.sum(visits > 0)),
        "states_with_3_visits": int(np.sum(visits >= 3)),
        "mean_outcome": float(np.mean([i.outcome for i in iterations])) if iterations else None,
    }


def label(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Takes the values of states from the stored trees (paper section 3.2)."""
    trees = TreeStore.read(run.directory / "trees").values()
    paths = [path for tree in trees for path in labelled_paths(tree, run.config.label)]
    write_paths(directory / DATASET, paths)
    values = np.array([v for path in paths for v in path.values])
    weights = np.array([w for path in paths for w in path.weights])
    return {
        "paths": len(paths),
        "states": int(np.sum(weights > 0)),
        "states_per_tree": float(np.sum(weights > 0) / len(trees)),
        "value_mean": float(np.average(values, weights=weights)),
    }


def train_reward(run: Run, stage: Stage, directory: pathlib.Path) -> Summary:
    """Regresses values of states from the policy's trunk (paper section 3.3)."""
    config = run.config
    model = run.policy(MASTER)
    paths = open_paths(run.directory / "states" / DATASET)
    sequences_of = {"paths": value_sequences, "trees": tree_sequences}[config.train_rm.packing]
    sequences, left_out = sequences_of(
        model.tokenizer, run.prompt_of, paths, config.train_rm.fit.length
    )
    rows = pack(sequences, config.train_rm.fit.length)
    mean = float(np.sum(rows.weights * rows.targets) / np.sum(rows.weights))
    if config.reward_init is None:
        start = init_reward(model.params, mean)
    else:
        start = run.reward_init(MASTER).params
    loss = reward_loss(config, model.config, run.mesh)
    params, last = _fit(
        run, stage, "train-rm", start, loss, rows, config.train_rm, directory, explicit.describe
    )
    params["trunk"] = cast(params["trunk"], config.dtype)
    models.save(directory / "model", "reward", dataclasses.replace(model, params=params))
    return {"rows": len(rows), "labels_left_out": left_out, "target_mean": mean, **last}


def sft_loss(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> LossFn:
    """What `sft` minimises."""
    return sft.make_loss(
        shape,
        mesh,
        remat=config.sft.fit.remat,
        attention=config.sft.fit.attention,
        dtype=_rounded(config),
        vocab_chunks=config.sft.vocab_chunks,
    )


def reward_loss(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> LossFn:
    """What `train-rm` minimises."""
    fit_config = config.train_rm.fit
    return explicit.make_loss(
        shape,
        mesh,
        remat=fit_config.remat,
        attention=fit_config.attention,
        dtype=_rounded(config),
    )


def _rounded(config: RunConfig) -> str | None:
    return None if config.dtype == MASTER else config.dtype


def _fit(
    run: Run,
    stage: Stage,
    name: str,
    params: Any,
    loss: LossFn,
    rows: PackedRows,
    config: TrainConfig,
    directory: pathlib.Path,
    describe: Callable[[dict[str, float]], dict[str, float]] = dict,
) -> tuple[Any, Summary]:
    """Trains with a progress bar; checkpoints in the stage's folder."""
    total = config.fit.total(len(rows))
    with progress(name, total) as bar:
        seen = 0

        def on_update(update: int, total: int, row: dict[str, float]) -> None:
            nonlocal seen
            shown = {key: row[key] for key in ("loss", "accuracy", "correlation") if key in row}
            bar.advance(update - seen, **shown)
            seen = update
            stage.tick()

        params, last = fit(
            params,
            loss,
            rows,
            config.fit,
            config.optimizer,
            directory=directory / "checkpoints",
            mesh=run.mesh,
            seed=run.config.seed,
            metrics=run.metrics(name),
            describe=describe,
            on_update=on_update,
        )
    if "loss" not in last:  # killed behind its last checkpoint: nothing was left to do
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


def _trains_policy(config: RunConfig) -> bool:
    return config.train_policy


def _trains_reward(config: RunConfig) -> bool:
    return config.reward_model is None


_LOGGING = ("metrics_every", "checkpoint_every")
_SHARED = ("environments", "seed")
_POLICY = (*_SHARED, "policy", "train_policy", "model", "sft", "engine.context", "dtype")

STAGES = (
    StageSpec(
        name="experts",
        folder="experts",
        sections=(*_SHARED, "experts"),
        wanted=_trains_policy,
        work=experts,
    ),
    StageSpec(name="sft", folder="sft", sections=_POLICY, wanted=_trains_policy, work=train_policy),
    StageSpec(
        name="explore",
        folder="trees",
        sections=(*_POLICY, "explore"),
        wanted=_trains_reward,
        work=explore,
    ),
    StageSpec(
        name="label", folder="states", sections=("label",), wanted=_trains_reward, work=label
    ),
    StageSpec(
        name="train-rm",
        folder="reward/explicit",
        sections=("train_rm", "reward_init"),
        wanted=_trains_reward,
        work=train_reward,
    ),
    StageSpec(
        name="evaluate",
        folder="eval",
        sections=(*_POLICY, "reward_model", "evaluate"),
        wanted=lambda config: True,
        work=evaluate,
    ),
)

_SPEED = (
    "explore.search.num_slots",
    "evaluate.slots",
    "evaluate.beam.num_slots",
    *(f"{stage}.fit.{key}" for stage in ("sft", "train_rm") for key in _LOGGING),
)
"""Keys that decide speed and no results."""


def stages_of(config: RunConfig) -> list[StageSpec]:
    """The stages that a run goes through, in order."""
    return [stage for stage in STAGES if stage.wanted(config)]


def depends_on(config: RunConfig, stage: StageSpec) -> dict[str, Any]:
    """The part of the configuration that decides a stage's output, by dotted key."""
    values = dataclasses.asdict(config)
    needed: dict[str, Any] = {}
    for each in stages_of(config):
        for key in each.sections:
            value: Any = values
            for part in key.split("."):
                value = value[part]
            needed[key] = _without(value, key)
        if each is stage:
            return needed
    raise UserError(f"{stage.name}: not a stage of this configuration (see policy, reward_model)")


def _without(value: Any, prefix: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: _without(inner, f"{prefix}.{key}")
        for key, inner in value.items()
        if f"{prefix}.{key}" not in _SPEED
    }
