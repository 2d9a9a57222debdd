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
from agentrm_jax.train.ranking import NO_RANKING, RankingConfig, ranking_sums
from agentrm_jax.train.step import Batch, LossFn, Sums


def make_loss(
    config: LlamaConfig,
    options: ForwardOptions = DEFAULT_OPTIONS,
    *,
    head: ValueHead = PAPER_HEAD,
    head_bias: bool = True,
    ranking: RankingConfig = NO_RANKING,
) -> LossFn:
    """Returns the loss: the sum of w * loss of the value in float32 over all labelled tokens.

    With a ranking loss, the losses of pairs of siblings are added (`train.ranking`).

    For rows with label positions (`data.packing.only_labelled`), the last layer computes only
    those.

    Args:
      config: Shape of the trunk.
      options: How the trunk is computed; the head is always float32.
      head: The value head; the paper's loss is (value - target)^2.
      head_bias: Whether the head's bias is trained; if not, it stays as it is.
      ranking: The ranking loss; with a weight above 0 batches must hold `siblings`.

    Returns:
      A function of (parameters, batch) to the loss and the sums of `moments`, with a ranking loss
      also those of `ranking_sums`.
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
        values = head.value(outputs)
        sums = moments(weights, values, targets)
        if ranking.weight:
            pairs = ranking_sums(ranking, values, targets, weights, batch["siblings"])
            loss, sums = loss + ranking.weight * pairs["ranking"], sums | pairs
        return loss, sums

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
      targets, 0 if one of them hardly varies; the mean `value` and `target`. With a ranking loss
      also `ranking_loss` and `sibling_accuracy`, the weighted means over pairs of siblings, if
      there is a pair.
    """
    value, target = means["value"], means["target"]
    spread = (means["value_squared"] - value**2) * (means["target_squared"] - target**2)
    covariance = means["value_target"] - value * target
    described = {
        "loss": means["loss"],
        "squared_error": means["squared_error"],
        "correlation": covariance / math.sqrt(spread) if spread > 1e-10 else 0.0,
        "value": value,
        "target": target,
    }
    if pairs := means.get("pair_weight"):
        described["ranking_loss"] = means["ranking"] / pairs
        described["sibling_accuracy"] = means["ordered"] / pairs
    return described
