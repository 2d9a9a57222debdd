"""The optimizer: AdamW with warm-up and decay."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of AdamW.

    Attributes:
      learning_rate: The peak of the learning rate.
      schedule: The schedule after the warm-up.
      warmup_fraction: Fraction of the updates over which the rate rises from zero.
      final_fraction: Last rate of `cosine` and `linear`, as a fraction of the peak.
      weight_decay: Decoupled weight decay.
      clip_norm: Largest norm of the gradient; larger gradients are scaled down to it.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      moments: Dtype in which both moments are stored between updates; `bfloat16` takes half of the
        memory. They are computed in float32.
    """

    learning_rate: float = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = 0.03
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    moments: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_fields(
            self,
            learning_rate="(0, inf)",
            warmup_fraction="[0, 1)",
            final_fraction="[0, 1]",
            weight_decay="[0, inf)",
            clip_norm="(0, inf)",
            b1="[0, 1)",
            b2="[0, 1)",
        )
        check_choice("schedule", self.schedule, ("cosine", "linear", "constant"))
        check_choice("moments", self.moments, ("float32", "bfloat16"))
        if self.moments == "bfloat16" and self.b2 > 0.99:
            # bfloat16 has 8 bits: a decay of less than 1 in 256 is rounded away.
            raise UserError(
                "must be at most 0.99 if moments is bfloat16, in which the second moment could not "
                "decay",
                field="b2",
                value=self.b2,
            )


def learning_rate(config: OptimizerConfig, num_updates: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of finished updates."""
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
    """Returns the optimizer for a training of this number of updates."""
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2)
    if config.moments != "float32":
        adam = _with_stored_moments(adam, config.moments)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(  # as optax.adamw
            adam,
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(learning_rate(config, num_updates)),
        ),
    )


def _with_stored_moments(
    adam: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
    """Returns Adam with its moments stored in another dtype between updates."""

    def moments(state: Any, dtype: Any) -> Any:
        rounded = jax.tree.map(lambda x: x.astype(dtype), (state.mu, state.nu))
        return state._replace(mu=rounded[0], nu=rounded[1])

    def init(params: Any) -> Any:
        return moments(adam.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(updates, moments(state, jnp.float32), params)
        return updates, moments(state, dtype)

    return optax.GradientTransformation(init, update)
