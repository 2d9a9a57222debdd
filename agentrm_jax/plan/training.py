"""Plans a training stage: its update, compiled for chips that this machine lacks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from agentrm_jax.core.errors import section
from agentrm_jax.model import lora, parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.pipeline.losses import MASTER, implicit_loss, reward_loss, sft_loss
from agentrm_jax.pipeline.train_config import (
    ImplicitTrainConfig,
    RewardTrainConfig,
    SftTrainConfig,
    TrainConfig,
)
from agentrm_jax.plan import work
from agentrm_jax.plan.compiling import Target, bytes_on_chip
from agentrm_jax.plan.needs import Program, StagePlan, training_advice
from agentrm_jax.plan.work import Work
from agentrm_jax.runtime.sharding import named_sharding
from agentrm_jax.train.optimizer import make_optimizer
from agentrm_jax.train.step import LossFn, abstract_state, make_train_step
from agentrm_jax.train.trainable import make_trainable

STAGES = ("sft", "train-rm", "train-implicit")

_TOKENS_OF_A_LABEL = 32  # a step of 64 tokens has a label at both ends


def plan_training(target: Target, policy: LlamaConfig) -> StagePlan:
    """Compiles the update of a training stage (`train.fit`).

    Args:
      target: The stage and the chips.
      policy: The shape of the policy.

    Raises:
      UserError: The batch does not fit the mesh, or the compiler refuses the program.
    """
    mesh, topology = target.mesh, target.topology
    train, description, loss = _trained(target, policy)
    with section(f"{target.stage.replace('-', '_')}.fit"):
        train.fit.check_mesh(mesh)
    optimizer = make_optimizer(train.optimizer, 1000)  # the number of updates is a constant in it
    model = make_trainable(
        description, loss, train.lora, lambda: lora.describe_adapters(description, train.lora)
    )
    frozen = model.frozen and target.abstract(model.frozen)
    state = abstract_state(parameters.abstract_of(model.params, MASTER, mesh), optimizer, mesh)
    placed, frozen_placed = jax.tree.map(lambda x: x.sharding, (state, frozen))
    update = make_train_step(
        model.loss_fn, optimizer, placed, mesh, train.fit.accumulation, frozen_placed
    )
    resident = {"parameters and optimizer": bytes_on_chip(state)}
    needed = _update_work(target, train, policy, resident["parameters and optimizer"])
    if frozen:
        resident["frozen parameters"] = bytes_on_chip(frozen)
    program = Program(
        name="update",
        unit="an update",
        work=needed,
        model_flops=work.training_flops(
            policy,
            train.fit.batch_size,
            train.fit.length,
            logits=_vocab_chunks(train) > 0,
            frozen=train.lora.rank > 0,
            outputs=_labels(train),
        ),
        handed=sum(resident.values()),
    )
    batch = _batch(target, train)
    program = target.compiled(program, lambda: update.lower(state, batch, frozen))
    plan = StagePlan(
        name=target.stage, resident=resident, programs=[program], hbm=topology.chip.hbm, advice=[]
    )
    return dataclasses.replace(plan, advice=training_advice(target.config, mesh, plan))


def _trained(target: Target, policy: LlamaConfig) -> tuple[TrainConfig, parameters.Params, LossFn]:
    """The configuration of the stage, the description of its parameters, and its loss."""
    config, mesh = target.config, target.mesh
    if target.stage == "sft":
        return config.sft, parameters.describe(policy), sft_loss(config, policy, mesh)
    if target.stage == "train-rm":
        description = parameters.describe_reward(policy, config.train_rm.head.outputs)
        return config.train_rm, description, reward_loss(config, policy, mesh)
    loss = implicit_loss(config, policy, mesh)
    return config.train_implicit, parameters.describe(policy), loss


def _batch(target: Target, train: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch."""
    rows, length, labels = train.fit.batch_size, train.fit.length, _labels(train)
    sharding = named_sharding(target.mesh, ("batch", "length"))

    def field(dtype: Any, tokens: int = length) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, tokens), dtype, sharding=sharding)

    batch = {name: field(jnp.int32) for name in ("tokens", "segments", "positions")}
    batch |= {name: field(jnp.float32, labels or length) for name in ("weights", "targets")}
    if labels is not None:
        batch["only"] = field(jnp.int32, labels)
    if isinstance(train, RewardTrainConfig) and train.ranking.weight:
        batch["siblings"] = field(jnp.int32, labels or length)
    if _rows_are_trees(train):
        batch["subtree_ends"] = field(jnp.int32)
    return batch


def _rows_are_trees(train: TrainConfig) -> bool:
    if isinstance(train, RewardTrainConfig):
        return train.packing == "trees"
    return isinstance(train, ImplicitTrainConfig) and train.objective.loss == "dpo"


def _labels(train: TrainConfig) -> int | None:
    """Labels of a row, assuming steps of 64 tokens; None if the loss needs every position."""
    if isinstance(train, RewardTrainConfig):
        return train.fit.length // _TOKENS_OF_A_LABEL
    return None


def _vocab_chunks(train: TrainConfig) -> int:
    """Parts of the vocabulary whose logits are computed in turn; 0 if the loss has no logits."""
    return train.vocab_chunks if isinstance(train, SftTrainConfig | ImplicitTrainConfig) else 0


def _update_work(target: Target, train: TrainConfig, shape: LlamaConfig, state: float) -> Work:
    """Least work of an update on each chip, recomputation included.

    The state is read and written once; the weights are read in each pass over the layers.
    """
    fit, chunks, frozen = train.fit, _vocab_chunks(train), train.lora.rank > 0
    count = functools.partial(
        work.training_flops, shape, fit.batch_size, fit.length, outputs=_labels(train)
    )
    flops = count(logits=chunks > 0, frozen=frozen)
    passes = 2 if frozen else 3  # forward, gradients of inputs, gradients of weights
    if fit.remat == "block":
        flops += count(logits=False) / 3  # one more forward pass
        passes += 1
    if chunks > 1:  # the backward pass computes the logits again
        flops += 2.0 * work.head_weights(shape) * fit.batch_size * fit.length
    weights = work.layer_weights(shape) * target.itemsize / target.mesh.shape["tensor"]
    return Work(flops / target.mesh.size, 2 * state + passes * fit.accumulation * weights)
