"""Supervised fine-tuning: cross-entropy on the tokens of replies (paper section 3.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.log_probs import token_log_probs
from agentrm_jax.model.parameters import cast
from agentrm_jax.train.step import Batch, LossFn, Sums


def make_loss(
    config: LlamaConfig,
    mesh: Mesh | None = None,
    *,
    remat: str = "none",
    attention: str = "xla",
    dtype: Any = None,
    vocab_chunks: int = 1,
) -> LossFn:
    """Sum of w[t] * -log p(token[t] | tokens before it in its sequence).

    Args:
      remat: See `llama.forward`.
      attention: See `llama.forward`.
      dtype: Of parameters and activations where it is not the parameters' own.
      vocab_chunks: See `token_log_probs`.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        log_probs, right = token_log_probs(
            cast(params, dtype), config, batch,
            mesh=mesh, remat=remat, attention=attention, vocab_chunks=vocab_chunks,
        )  # fmt: skip
        inside = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        weights = batch["weights"] * jnp.pad(inside, ((0, 0), (1, 0)))
        return -jnp.sum(weights * log_probs), {
            "weight": jnp.sum(weights),
            "accuracy": jnp.sum(weights * right),
        }

    return loss_fn
