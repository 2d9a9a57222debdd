"""One jitted, sharded, donated update for any loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.runtime.sharding import named_sharding

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Sums]]
"""A function of (params, batch) to the sum of weighted losses and further sums by name.

One of the sums is `weight`, the sum of the weights. Of a model with frozen parameters, these are a
third argument."""


def apply_loss(
    loss_fn: LossFn, params: Any, batch: Batch, frozen: Any = None
) -> tuple[jax.Array, Sums]:
    """Returns a loss and its sums; the frozen parameters are passed on if there are any."""
    return loss_fn(params, batch) if frozen is None else loss_fn(params, batch, frozen)


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes: arrays, or in their place shapes or shardings.

    Attributes:
      params: The trained parameters.
      opt_state: The optimizer's state.
      update: Number of finished updates, an int32 scalar.
    """

    params: Any
    opt_state: Any
    update: Any


def state_shardings(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the sharding of each array of a state.

    Moments are sharded as their parameters are; scalars are replicated.

    Args:
      params: The parameters. Parameters on the mesh keep their sharding; all others are
        replicated.
      optimizer: The optimizer.
      mesh: The devices.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(param: jax.Array) -> NamedSharding:
        sharding = param.sharding
        if isinstance(sharding, NamedSharding) and sharding.mesh == mesh:
            return sharding
        return replicated

    placed = jax.tree.map(place, params)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        placed,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(params=placed, opt_state=opt_state, update=replicated)


def make_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state before the first update; the first update frees the parameters."""
    placed = state_shardings(params, optimizer, mesh)
    params = jax.device_put(params, placed.params)
    # Without out_shardings the moments would all be made on one device.
    opt_state = jax.jit(optimizer.init, out_shardings=placed.opt_state)(params)
    return TrainState(
        params=params,
        opt_state=opt_state,
        update=jax.device_put(jnp.int32(0), placed.update),
    )


def abstract_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the shapes and shardings of the state that `make_state` makes of parameters."""
    made = jax.eval_shape(
        lambda p: TrainState(params=p, opt_state=optimizer.init(p), update=jnp.int32(0)), params
    )
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        made,
        state_shardings(params, optimizer, mesh),
    )


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a batch with its rows sharded as in training; every process has the whole batch."""
    sharding = named_sharding(mesh, ("batch", "length"))
    return {
        name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        for name, value in batch.items()
    }


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    placed: TrainState,
    mesh: Mesh,
    accumulation: int = 1,
    frozen: Any = None,
) -> jax.stages.Wrapped:
    """Returns the compiled update.

    Losses and weights are summed over micro-batches and devices and divided once, so that the
    result does not depend on how a batch was divided.

    Args:
      loss_fn: The loss.
      optimizer: The optimizer.
      placed: Shardings of the state, from `state_shardings`; the next state has the same.
      mesh: The devices.
      accumulation: Micro-batches of a batch; divides its rows.
      frozen: Shardings of the frozen parameters; None if there are none.

    Returns:
      A function of (state, batch, frozen parameters or None) to the next state and the sums of the
      loss function by name, with `loss` and `grad_norm`. It consumes the state.
    """
    rows = named_sharding(mesh, ("batch", "length"))

    def summed(params: Any, batch: Batch, frozen: Any) -> tuple[Any, Sums]:
        def loss_and_sums(params: Any) -> tuple[jax.Array, Sums]:
            return apply_loss(loss_fn, params, batch, frozen)

        (loss, sums), grads = jax.value_and_grad(loss_and_sums, has_aux=True)(params)
        return grads, {"loss": loss, **sums}

    def accumulated(params: Any, batch: Batch, frozen: Any) -> tuple[Any, Sums]:
        # Every accumulation-th row is in the same one, so that no row moves to another device.
        micro_batches = jax.tree.map(
            lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
        )
        first = jax.tree.map(lambda x: x[0], micro_batches)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(summed, params, first, frozen)
        )

        def add(total: Any, micro_batch: Batch) -> tuple[Any, None]:
            micro_batch = jax.lax.with_sharding_constraint(micro_batch, rows)
            return jax.tree.map(jnp.add, total, summed(params, micro_batch, frozen)), None

        return jax.lax.scan(add, zeros, micro_batches)[0]

    gradients = summed if accumulation == 1 else accumulated

    def step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, Sums]:
        grads, sums = gradients(state.params, batch, frozen)
        weight = jnp.maximum(sums["weight"], 1e-6)
        grads = jax.tree.map(lambda g: (g / weight).astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        sums = {**sums, "grad_norm": norm}
        return TrainState(params=params, opt_state=opt_state, update=state.update + 1), sums

    return jax.jit(
        step,
        in_shardings=(placed, rows, frozen),
        out_shardings=(placed, None),
        donate_argnums=0,
    )
