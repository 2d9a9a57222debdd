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
import optax
from jaxtyping import Array, Float

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
    observation_loss: float = 0.0,
) -> LossFn:
    """Returns the loss: the sum of w * loss of the value in float32 over all labelled tokens.

    With a ranking loss, the losses of pairs of siblings are added (`train.ranking`). With an
    observation loss, the cross-entropies of the tokens `predicted` are added.

    For rows with label positions (`data.packing.only_labelled`), the last layer computes only
    those.

    Args:
      config: Shape of the trunk.
      options: How the trunk is computed; the head is always float32.
      head: The value head; the paper's loss is (value - target)^2.
      head_bias: Whether the head's bias is trained; if not, it stays as it is.
      ranking: The ranking loss; with a weight above 0 batches must hold `siblings`.
      observation_loss: Weight of the cross-entropy of each token in `predicted`; above 0 the trunk
        must hold the policy's `lm_head`, if it has one.

    Returns:
      A function of (parameters, batch) to the loss and the sums of `moments`, with a ranking loss
      also of `ranking_sums`, with an observation loss also of `_observation_sums`.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        trunk = cast(params["trunk"], options.dtype)
        hidden = llama.forward(
            trunk,
            config,
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            batch.get("subtree_ends"),
            None if observation_loss else batch.get("only"),
            options,
        )
        extra: Sums = {}
        if observation_loss:
            extra = _observation_sums(trunk, config, hidden, batch)
            if "only" in batch:
                hidden = jnp.take_along_axis(hidden, batch["only"][..., None], axis=1)
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
        if observation_loss:
            loss += observation_loss * extra["observation_loss"]
        return loss, sums | extra

    return loss_fn


def _observation_sums(
    trunk: Any, config: LlamaConfig, hidden: Float[Array, "batch length d_model"], batch: Batch
) -> Sums:
    """Returns the number of predicted tokens and the sum of their cross-entropies.

    A token is predicted from the one before it in the row, which is its predecessor on its path:
    the first token of an observation follows the last one of the action.
    """
    logits = llama.logits(trunk, config, hidden[:, :-1])
    targets, counted = batch["tokens"][:, 1:], batch["predicted"][:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return {
        "observation_tokens": jnp.sum(counted.astype(jnp.float32)),
        "observation_loss": jnp.sum(losses * counted),
    }


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
      there is a pair. With an observation loss also `observation_loss`, the mean over tokens.
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
    if tokens := means.get("observation_tokens"):
        described["observation_loss"] = means["observation_loss"] / tokens
    return described
