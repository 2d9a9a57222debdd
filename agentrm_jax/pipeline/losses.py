"""What each stage of training minimises, and in which dtype."""

from __future__ import annotations

from jax.sharding import Mesh

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.pipeline.config import RunConfig, TrainConfig
from agentrm_jax.train import explicit, implicit, sft
from agentrm_jax.train.step import LossFn

MASTER = "float32"
"""Dtype of the parameters that training updates: steps of a learning rate of 1e-5 would be lost
between two numbers of bfloat16. They are rounded to the run's dtype for each forward pass."""


def implicit_loss(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> LossFn:
    """What `train-implicit` minimises."""
    own = config.train_implicit
    return implicit.make_loss(
        own.objective,
        shape,
        mesh,
        remat=own.fit.remat,
        attention=own.fit.attention,
        dtype=_rounded(config),
        vocab_chunks=own.vocab_chunks,
    )


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
        head=config.train_rm.head,
        remat=fit_config.remat,
        attention=fit_config.attention,
        dtype=_rounded(config),
        head_bias=config.train_rm.head_bias,
    )


def loaded_dtype(config: RunConfig, train: TrainConfig) -> str:
    """Dtype of the parameters that training begins with; those that are frozen need no other."""
    return config.dtype if train.lora.rank else MASTER


def _rounded(config: RunConfig) -> str | None:
    return None if config.dtype == MASTER else config.dtype
