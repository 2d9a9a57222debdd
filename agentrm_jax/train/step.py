"""One jitted, sharded, donated update for any loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.core.sharding import named_sharding

Batch = Mapping[str, jax.Array]
LossFn = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]
"""(params, batch) to (sum of weighted losses, sums by name). `weight` must be among the sums."""


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes; `update` counts the finished ones (int32 scalar)."""

    params: Any
    opt_state: Any
    update: jax.Array


def state_shardings(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where the state lives: moments beside their parameters, scalars everywhere.

    Args:
      params: Parameters that already lie where they belong.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    abstract = jax.eval_shape(optimizer.init, params)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, param: param.sharding,
        abstract,
        params,
        transform_non_params=lambda _: everywhere,
    )
    placed = jax.tree.map(lambda param: param.sharding, params)
    return TrainState(params=placed, opt_state=opt_state, update=everywhere)


def make_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A state before the first update."""
    placed = state_shardings(params, optimizer, mesh)
    # Without out_shardings the moments would all be made on one device.
    opt_state = jax.jit(optimizer.init, out_shardings=placed.opt_state)(params)
    return TrainState(
        params=params, opt_state=opt_state, update=jax.device_put(jnp.int32(0), placed.update)
    )


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, mesh: Mesh, accumulation: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled update.

    Losses and weights are summed over micro-batches and devices and divided once, so that the
    result does not depend on how a batch was cut.

    Args:
      accumulation: Micro-batches of a batch; divides its rows.

    Returns:
      A function (state, batch) to (next state, sums by name with `loss` among them). It consumes
      the state.
    """

    def summed(params: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        return grads, {"loss": loss, **sums}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        if accumulation == 1:
            grads, sums = summed(state.params, batch)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(accumulation, x.shape[0] // accumulation, *x.shape[1:]), batch
            )
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(summed, state.params, jax.tree.map(lambda x: x[0], parts)),
            )

            def add(total: Any, part: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, summed(state.params, part)), None

            (grads, sums), _ = jax.lax.scan(add, zeros, parts)
        weight = jnp.maximum(sums["weight"], 1e-6)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        sums = {**sums, "grad_norm": optax.global_norm(grads)}
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state, update=state.update + 1), sums

    rows = named_sharding(mesh, ("batch", "length"))
    return jax.jit(step, in_shardings=(None, rows), donate_argnums=0)
