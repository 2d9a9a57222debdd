"""The value head of a reward model: what it says of a hidden state, its value, and its loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.model.parameters import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What the value head predicts and how it is trained.

    Attributes:
      kind: `mse`: one number, squared error (the paper's); `hl_gauss`: a distribution over bins,
        cross-entropy to the target smoothed by a normal distribution (Farebrother et al. 2024,
        "Stop Regressing"), the value is its mean; `quantile`: as many quantiles of the target,
        Huber pinball loss (Dabney et al. 2018, QR-DQN), the value is their mean.
      bins: Of `hl_gauss`, or how many quantiles.
      low: Where the bins begin. By default they reach beyond the values, which lie in [0, 1]: what
        is smoothed at an edge would be pulled inwards.
      high: Where they end.
      sigma: Standard deviation of the smoothing, in bins.
      huber: Error, in units of the value, up to which the pinball loss is rounded off.
    """

    kind: Literal["mse", "hl_gauss", "quantile"] = "mse"
    bins: int = 51
    low: float = -0.1
    high: float = 1.1
    sigma: float = 0.75
    huber: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, bins="[2, 65536]", sigma="(0, inf)", huber="(0, inf)")
        check_choice("kind", self.kind, ("mse", "hl_gauss", "quantile"))
        if self.low >= self.high:
            raise UserError(field="low", value=self.low, expected=f"below high, {self.high}")

    @property
    def outputs(self) -> int | None:
        """K, how many numbers it says; None for one that is not in a list."""
        return None if self.kind == "mse" else self.bins

    def check_targets(self, targets: np.ndarray) -> None:
        """Refuses labels that no bin holds.

        Raises:
          UserError: There are some.
        """
        least, most = float(targets.min()), float(targets.max())
        if self.kind == "hl_gauss" and not (self.low <= least and most <= self.high):
            raise UserError(
                f"and high must be around all labels, which lie in [{least:.3g}, {most:.3g}] (got "
                f"[{self.low}, {self.high}])",
                field="low",
            )


MSE = HeadConfig()
"""The paper's head."""


@dataclasses.dataclass(frozen=True, slots=True)
class Readout:
    """`readout` of a kind of head, for an engine: equal kinds share their compiled programs."""

    config: HeadConfig

    def __call__(self, head: Params, hidden: jax.Array) -> jax.Array:
        return readout(head, hidden, self.config)


def readout(head: Params, hidden: jax.Array, config: HeadConfig = MSE) -> jax.Array:
    """Values [...] float32 of hidden states [..., D]."""
    return value_of(head_outputs(head, hidden), config)


def head_outputs(head: Params, hidden: jax.Array) -> jax.Array:
    """What the head says of hidden states [..., D]: [...] or [..., K] float32."""
    # Without the precision accelerators would round both sides to 8 or 11 bits.
    wide = hidden.astype(jnp.float32)
    return jnp.matmul(wide, head["kernel"].T, precision="highest") + head["bias"]


def value_of(outputs: jax.Array, config: HeadConfig) -> jax.Array:
    """The values [...] that a head's outputs stand for."""
    if config.kind == "hl_gauss":
        centres = jnp.asarray(_centres(config), jnp.float32)
        return jnp.sum(jax.nn.softmax(outputs) * centres, axis=-1)
    return outputs if config.kind == "mse" else jnp.mean(outputs, axis=-1)


def losses(outputs: jax.Array, targets: jax.Array, config: HeadConfig) -> jax.Array:
    """The loss [...] float32 of each of a head's outputs for its target [...]."""
    if config.kind == "mse":
        return jnp.square(outputs - targets)
    if config.kind == "hl_gauss":
        wanted = histogram(targets, config)
        return -jnp.sum(wanted * jax.nn.log_softmax(outputs), axis=-1)
    levels = (jnp.arange(config.bins) + 0.5) / config.bins
    error = targets[..., None] - outputs
    size = jnp.abs(error)
    huber = jnp.where(
        size < config.huber, 0.5 * jnp.square(error) / config.huber, size - 0.5 * config.huber
    )
    return jnp.mean(jnp.where(error < 0, 1 - levels, levels) * huber, axis=-1)


def histogram(targets: jax.Array, config: HeadConfig) -> jax.Array:
    """Targets [...] as distributions [..., K] over the bins; one beyond them counts as at the edge.

    Each is a normal distribution around the target, cut off at the outer edges.
    """
    edges = np.linspace(config.low, config.high, config.bins + 1, dtype=np.float32)
    spread = config.sigma * (config.high - config.low) / config.bins
    centre = jnp.clip(targets, config.low, config.high)[..., None]
    below = jax.scipy.special.ndtr((edges - centre) / spread)
    return jnp.diff(below) / (below[..., -1:] - below[..., :1])


def linear(head: Params, config: HeadConfig) -> tuple[jax.Array, jax.Array] | None:
    """The weight [D] and bias [] of the one linear map that gives the head's value.

    Returns:
      None for `hl_gauss`, where there is none: its value is the mean of a softmax.
    """
    if config.kind == "hl_gauss":
        return None
    if config.kind == "mse":
        return head["kernel"], head["bias"]
    return head["kernel"].mean(axis=0), head["bias"].mean()


def init_reward(policy: Params, mean_value: float, config: HeadConfig = MSE) -> Params:
    """A reward model that begins as the policy's trunk and predicts the mean value everywhere."""
    trunk = {name: value for name, value in policy.items() if name != "lm_head"}
    bias = jnp.asarray(_initial_bias(mean_value, config), jnp.float32)
    D = policy["final_norm"].shape[0]
    return {
        "trunk": trunk,
        "value_head": {"kernel": jnp.zeros((*bias.shape, D), jnp.float32), "bias": bias},
    }


def _centres(config: HeadConfig) -> np.ndarray:
    edges = np.linspace(config.low, config.high, config.bins + 1)
    return (edges[:-1] + edges[1:]) / 2


def _initial_bias(mean: float, config: HeadConfig) -> np.ndarray:
    """Outputs whose value is the mean. Of distributions, the flattest: its logits are a line."""
    if config.kind != "hl_gauss":
        return np.full(() if config.outputs is None else config.outputs, mean)
    centres = _centres(config)
    bins = np.arange(config.bins) - (config.bins - 1) / 2
    least, most = -50.0, 50.0  # logits per bin: all on the first bin, all on the last
    for _ in range(60):
        slope = (least + most) / 2
        weights = np.exp(slope * bins - np.max(slope * bins))
        if weights @ centres < mean * weights.sum():
            least = slope
        else:
            most = slope
    return (least + most) / 2 * bins
