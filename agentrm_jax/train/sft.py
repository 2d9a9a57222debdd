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


def make_loss(config: LlamaConfig, options: ForwardOptions = DEFAULT_OPTIONS) -> LossFn:
    """Returns the loss: the sum of w[t] * -log p(token[t] | earlier tokens of its sequence).

    Args:
      config: Shape of the policy.
      options: How it is computed.

    Returns:
      A function of (parameters, batch) to the loss and the sums `weight` and `accuracy`; a batch
      holds the fields of `data.packing.PackedRows`.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        log_probs, right = token_log_probs(cast(params, options.dtype), config, batch, options)
        inside = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        weights = batch["weights"] * jnp.pad(inside, ((0, 0), (1, 0)))
        return -jnp.sum(weights * log_probs), {
            "weight": jnp.sum(weights),
            "accuracy": jnp.sum(weights * right),
        }

    return loss_fn
