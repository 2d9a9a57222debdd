"""The implicit reward model: a policy's log-ratio to a reference is the reward (paper section 3.3).

The reward of a step is beta * log(pi(reply | state) / reference(reply | state)); the reward of a
trajectory is the sum over its steps. It is trained on whole trajectories with their outcomes,
without trees.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.log_probs import token_log_probs
from agentrm_jax.model.options import DEFAULT_OPTIONS, ForwardOptions
from agentrm_jax.model.parameters import cast
from agentrm_jax.train.explicit import moments
from agentrm_jax.train.step import Batch, LossFn, Sums, place


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitConfig:
    """The objective of the implicit reward model.

    Attributes:
      loss: `mse`: squared difference of a trajectory's reward and its outcome (the paper's loss);
        `cross_entropy`: cross-entropy with the outcome as a soft label and the reward as its logit;
        `dpo`: -log sigmoid of the reward of the better of two trajectories minus that of the other
        (Rafailov et al. 2023, with whole trajectories).
      beta: The factor of the log-ratios.
    """

    loss: Literal["mse", "cross_entropy", "dpo"] = "mse"
    beta: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, beta="(0, inf)")
        check_choice("loss", self.loss, _LOSSES)


_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mse": lambda rewards, outcomes: jnp.square(rewards - outcomes),
    "cross_entropy": lambda rewards, outcomes: jax.nn.softplus(rewards) - outcomes * rewards,
    "dpo": lambda rewards, outcomes: jax.nn.softplus(-rewards),
}


def make_loss(
    objective: ImplicitConfig, config: LlamaConfig, options: ForwardOptions = DEFAULT_OPTIONS
) -> LossFn:
    """Returns the loss: the sum over all sequences of a batch, each a trajectory or a pair.

    Args:
      objective: Loss and scale of the reward.
      config: Shape of the policy.
      options: How it is computed.

    Returns:
      A function of (parameters, batch) to the loss and sums by name; the batch is made of rows
      from `with_reference`.
    """

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        log_probs, _ = token_log_probs(cast(params, options.dtype), config, batch, options)
        weights, targets = batch["weights"], batch["targets"]
        first = (batch["positions"] == 0) & (batch["segments"] > 0)

        def by_sequence(values: jax.Array) -> jax.Array:
            """Returns the sums of values [B, T] over the sequences of each row, [B, T + 1]."""
            return jax.vmap(jax.ops.segment_sum, (0, 0, None))(
                values, batch["segments"], values.shape[1] + 1
            )

        rewards = objective.beta * by_sequence(weights * (log_probs - targets))
        outcomes = by_sequence(first * targets)
        is_sequence = by_sequence(first.astype(jnp.float32))
        loss = jnp.sum(is_sequence * _LOSSES[objective.loss](rewards, outcomes))
        if objective.loss == "dpo":
            right = jnp.sum(is_sequence * (rewards > 0))
            return loss, {"weight": jnp.sum(is_sequence), "accuracy": right}
        values = jax.nn.sigmoid(rewards) if objective.loss == "cross_entropy" else rewards
        return loss, moments(is_sequence, values, outcomes)

    return loss_fn


def with_reference(rows: PackedRows, log_probs: np.ndarray) -> PackedRows:
    """Returns rows in which the target of each reply token is its log-probability.

    Args:
      rows: Rows of `outcome_sequences` or `pair_sequences`; their other targets are kept.
      log_probs: [R, T] float32, the log-probabilities under the reference.
    """
    targets = np.where(rows.weights != 0, log_probs, rows.targets)
    return dataclasses.replace(rows, targets=targets)


def reference_log_probs(
    params: Any,
    config: LlamaConfig,
    rows: PackedRows,
    batch_size: int,
    options: ForwardOptions,
    *,
    on_rows: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Returns the log-probability of each token of all rows; computed once before a training.

    Every process gets all of them.

    Args:
      params: The reference policy.
      config: Its shape.
      rows: Packed rows.
      batch_size: Rows that are read at once; a multiple of the number of devices that split rows.
      options: How it is computed; must have a mesh.
      on_rows: Called with the number of rows that were read.

    Returns:
      [R, T] float32.
    """
    mesh = options.mesh
    assert mesh is not None

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def read(params: Any, batch: Batch) -> jax.Array:
        return token_log_probs(params, config, batch, options)[0]

    log_probs = []
    for begin in range(0, len(rows), batch_size):
        row_indices = np.arange(begin, begin + batch_size)
        batch = rows.take(np.minimum(row_indices, len(rows) - 1))  # the last row fills the batch
        log_probs.append(np.asarray(read(params, place(batch, mesh))))
        on_rows(min(batch_size, len(rows) - begin))
    return np.concatenate(log_probs)[: len(rows)]
