"""Supervised fine-tuning: cross-entropy on the tokens of replies (paper section 3.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.train.step import Batch, LossFn, Sums


def make_loss(
    config: LlamaConfig, mesh: Mesh | None = None, *, remat: bool = False, attention: str = "xla"
) -> LossFn:
    """Sum of w[t] * -log p(token[t] | tokens before it in its sequence)."""

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        tokens, segments = batch["tokens"], batch["segments"]
        hidden = llama.forward(
            params, config, tokens, batch["positions"], segments,
            mesh=mesh, remat=remat, attention=attention,
        )  # fmt: skip
        logits = llama.logits(params, config, hidden[:, :-1])
        # The first token of a sequence has nothing before it to be predicted from.
        inside = segments[:, 1:] == segments[:, :-1]
        weights = batch["weights"][:, 1:] * inside
        targets = tokens[:, 1:]
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        losses = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        right = jnp.argmax(logits, axis=-1) == targets
        return jnp.sum(weights * losses), {
            "weight": jnp.sum(weights),
            "accuracy": jnp.sum(weights * right),
        }

    return loss_fn
