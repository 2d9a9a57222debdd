"""The explicit reward model: regression to the values of states (paper section 3.3).

All labelled step ends of a packed row, of paths or of whole trees, are trained in one pass. A
causal model sees at each of them exactly the state, so this equals one sequence per state and costs
a fraction of its tokens.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import PAPER_HEAD, ValueHead
from agentrm_jax.model.parameters import cast
from agentrm_jax.model.value import head_outputs
from agentrm_jax.train.step import Batch, LossFn, Sums


def make_loss(
    config: LlamaConfig,
    mesh: Mesh | None = None,
    *,
    head: ValueHead = PAPER_HEAD,
    remat: str = "none",
    attention: str = "xla",
    dtype: Any = None,
    head_bias: bool = True,
) -> LossFn:
    """Sum of w * loss in float32 over all labelled tokens; the paper's is (value - target)^2.

    Of rows that tell which tokens these are (`data.packing.only_labelled`), the last layer computes
    nothing else.

    Args:
      head: What is predicted, and its loss.
      remat: See `llama.forward`.
      attention: See `llama.forward`.
      dtype: Of the trunk's parameters and activations where it is not the parameters' own.
      head_bias: Whether the head's bias is trained, or left as it is.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        hidden = llama.forward(
            cast(params["trunk"], dtype),
            config,
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            batch.get("until"),
            batch.get("only"),
            mesh=mesh,
            remat=remat,
            attention=attention,
        )
        value_head = params["value_head"]
        if not head_bias:
            bias = jax.lax.stop_gradient(value_head["bias"])
            value_head = {**value_head, "bias": bias}
        outputs = head_outputs(value_head, hidden)
        weights, targets = batch["weights"], batch["targets"]
        loss = jnp.sum(weights * head.losses(outputs, targets))
        return loss, moments(weights, head.value(outputs), targets)

    return loss_fn


def moments(weights: jax.Array, values: jax.Array, targets: jax.Array) -> Sums:
    """Weighted sums from which `describe` tells how values and targets agree; equal shapes."""
    return {
        "weight": jnp.sum(weights),
        "squared_error": jnp.sum(weights * jnp.square(values - targets)),
        "value": jnp.sum(weights * values),
        "target": jnp.sum(weights * targets),
        "value_squared": jnp.sum(weights * values**2),
        "target_squared": jnp.sum(weights * targets**2),
        "value_target": jnp.sum(weights * values * targets),
    }


def describe(means: dict[str, float]) -> dict[str, float]:
    """Weighted means over states as metrics.

    `squared_error` is that of the values, whatever the loss is; `correlation` is that of values and
    targets, 0 where one of them hardly varies.
    """
    value, target = means["value"], means["target"]
    spread = (means["value_squared"] - value**2) * (means["target_squared"] - target**2)
    covariance = means["value_target"] - value * target
    return {
        "loss": means["loss"],
        "squared_error": means["squared_error"],
        "correlation": covariance / math.sqrt(spread) if spread > 1e-10 else 0.0,
        "value": value,
        "target": target,
    }
