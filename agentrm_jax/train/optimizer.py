"""The optimiser: AdamW with warm-up and decay."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from agentrm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
      learning_rate: At its peak.
      schedule: What follows the warm-up.
      warmup_fraction: Share of the updates over which the rate rises from zero.
      final_fraction: Where cosine and linear end, as a share of the peak.
      weight_decay: Decoupled.
      clip_norm: Largest norm of the gradient.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
    """

    learning_rate: float = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = 0.03
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear", "constant"):
            raise UserError(
                f"optimizer.schedule: must be cosine, linear or constant, not {self.schedule!r}"
            )
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise UserError("optimizer: learning_rate and clip_norm must be positive")
        if not 0 <= self.warmup_fraction < 1:
            raise UserError("optimizer.warmup_fraction: must be at least 0 and below 1")


def learning_rate(config: OptimizerConfig, num_updates: int) -> optax.Schedule:
    warmup = round(config.warmup_fraction * num_updates)
    peak, rest = config.learning_rate, max(1, num_updates - warmup)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_fraction, rest)
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup])


def make_optimizer(config: OptimizerConfig, num_updates: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_updates),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
        ),
    )
