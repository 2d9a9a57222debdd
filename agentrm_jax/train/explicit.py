"""The explicit reward model: regression to the values of states (paper section 3.3).

All labelled step ends of a packed row, of paths or of whole trees, are trained in one pass. At each
of them the input of a causal model is exactly the state, so the loss equals that of one sequence
per state, for a fraction of the tokens.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import PAPER_HEAD, ValueHead
from agentrm_jax.model.options import DEFAULT_OPTIONS, ForwardOptions
from agentrm_jax.model.parameters import cast
from agentrm_jax.model.value import head_outputs
from agentrm_jax.train.step import Batch, LossFn, Sums


def make_loss(
    config: LlamaConfig,
    options: ForwardOptions = DEFAULT_OPTIONS,
    *,
    head: ValueHead = PAPER_HEAD,
    head_bias: bool = True,
) -> LossFn:
    """Returns the loss: the sum of w * loss of the value in float32 over all labelled tokens.

    For rows with label positions (`data.packing.only_labelled`), the last layer computes only
    those.

    Args:
      config: Shape of the trunk.
      options: How the trunk is computed; the head is always float32.
      head: The value head; the paper's loss is (value - target)^2.
      head_bias: Whether the head's bias is trained; if not, it stays as it is.

    Returns:
      A function of (parameters, batch) to the loss and the sums of `moments`.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        hidden = llama.forward(
            cast(params["trunk"], options.dtype),
            config,
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            batch.get("subtree_ends"),
            batch.get("only"),
            options,
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
    """Returns the weighted sums that `describe` turns into metrics.

    Args:
      weights: Weights of any shape.
      values: Predicted values of the same shape.
      targets: Labels of the same shape.
    """
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
    """Returns the metrics of weighted means over states.

    Args:
      means: The sums of `moments` divided by the sum of the weights, and the mean `loss`.

    Returns:
      `loss`; `squared_error` of the values, whatever the loss is; the `correlation` of values and
      targets, 0 if one of them hardly varies; the mean `value` and `target`.
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
