"""Supervised fine-tuning: cross-entropy on the tokens of replies (paper section 3.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.log_probs import token_log_probs
from agentrm_jax.model.options import DEFAULT_OPTIONS, ForwardOptions
from agentrm_jax.model.parameters import cast
from agentrm_jax.train.step import Batch, LossFn, Sums


def make_loss(
    config: LlamaConfig,
    options: ForwardOptions = DEFAULT_OPTIONS,
    *,
    observation_loss: float = 0.0,
) -> LossFn:
    """Returns the loss: the sum of w[t] * -log p(token[t] | earlier tokens of its sequence).

    Args:
      config: Shape of the policy.
      options: How it is computed.
      observation_loss: Weight of the cross-entropy of each token without a weight of its own:
        prompts, openings and observations.

    Returns:
      A function of (parameters, batch) to the loss and the sums `weight` and `accuracy`, with an
      observation loss also `observation_tokens` and `observation_loss`; a batch holds the fields
      of `data.packing.PackedRows`.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        log_probs, right = token_log_probs(cast(params, options.dtype), config, batch, options)
        inside = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        inside = jnp.pad(inside, ((0, 0), (1, 0)))
        weights = batch["weights"] * inside
        loss = -jnp.sum(weights * log_probs)
        sums = {"weight": jnp.sum(weights), "accuracy": jnp.sum(weights * right)}
        if observation_loss:
            others = inside & (batch["segments"] > 0) & (batch["weights"] == 0)
            sums["observation_tokens"] = jnp.sum(others.astype(jnp.float32))
            sums["observation_loss"] = -jnp.sum(others * log_probs)
            loss += observation_loss * sums["observation_loss"]
        return loss, sums

    return loss_fn


def describe(means: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of weighted means over the tokens of replies.

    Args:
      means: The sums of `make_loss` divided by the sum of the weights, and the mean `loss`.

    Returns:
      The means without `observation_tokens`; `observation_loss` is the mean over those tokens.
    """
    described = dict(means)
    if tokens := described.pop("observation_tokens", 0.0):
        described["observation_loss"] /= tokens
    return described
