"""The loss of each stage of training, and the dtypes of its parameters."""

from __future__ import annotations

from jax.sharding import Mesh

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.train_config import ImplicitTrainConfig, SftTrainConfig, TrainConfig
from agentrm_jax.train import explicit, implicit, sft
from agentrm_jax.train.step import LossFn

MASTER = "float32"
"""Dtype of the parameters that training updates: in bfloat16 the steps of a learning rate of 1e-5
would be rounded away. They are rounded to the run's dtype for each forward pass."""


def implicit_loss(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> LossFn:
    """Returns the loss that `train-implicit` minimises."""
    stage = config.train_implicit
    return implicit.make_loss(stage.objective, shape, forward_options(config, stage, mesh))


def sft_loss(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> LossFn:
    """Returns the loss that `sft` minimises."""
    return sft.make_loss(
        shape,
        forward_options(config, config.sft, mesh),
        observation_loss=config.sft.observation_loss,
    )


def reward_loss(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> LossFn:
    """Returns the loss that `train-rm` minimises."""
    stage = config.train_rm
    return explicit.make_loss(
        shape,
        forward_options(config, stage, mesh),
        head=stage.head,
        head_bias=stage.head_bias,
        ranking=stage.ranking,
        observation_loss=stage.observation_loss,
    )


def forward_options(config: RunConfig, train: TrainConfig, mesh: Mesh) -> ForwardOptions:
    """Returns the options of the forward passes of a stage of training."""
    chunked = isinstance(train, SftTrainConfig | ImplicitTrainConfig)
    return ForwardOptions(
        mesh=mesh,
        attention=train.fit.attention,
        remat=train.fit.remat,
        dtype=None if config.dtype == MASTER else config.dtype,
        vocab_chunks=train.vocab_chunks if chunked else 1,
    )


def loaded_dtype(config: RunConfig, train: TrainConfig) -> str:
    """Returns the dtype in which a stage loads the parameters that it starts from.

    Parameters that no update changes need no other dtype than the run's.
    """
    return config.dtype if train.lora.rank else MASTER
