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
"""(params, batch) to (sum of weighted losses, sums by name). `weight` must be among the sums. What
of the model is frozen is a third argument."""


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes; `update` counts the finished ones (int32 scalar).

    The same record holds the shardings of its fields, hence no narrower types.
    """

    params: Any
    opt_state: Any
    update: Any


def state_shardings(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where the state lives: moments beside their parameters, scalars everywhere.

    Args:
      params: Parameters; those that lie on the mesh stay as they lie, others are put everywhere.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(param: jax.Array) -> NamedSharding:
        own = param.sharding
        return own if isinstance(own, NamedSharding) and own.mesh == mesh else everywhere

    placed = jax.tree.map(place, params)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        placed,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(params=placed, opt_state=opt_state, update=everywhere)


def make_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first update. It owns the parameters: the first step frees them."""
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
    """Shapes and shardings of what `make_state` makes, from those of the parameters."""
    made = jax.eval_shape(
        lambda p: TrainState(params=p, opt_state=optimizer.init(p), update=jnp.int32(0)), params
    )
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        made,
        state_shardings(params, optimizer, mesh),
    )


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process has whole, its rows where training has them."""
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
) -> Callable[..., tuple[TrainState, Sums]]:
    """The compiled update.

    Losses and weights are summed over micro-batches and devices and divided once, so that the
    result does not depend on how a batch was cut.

    Args:
      placed: Where the state lives, from `state_shardings`. It stays there.
      accumulation: Micro-batches of a batch; divides its rows.
      frozen: Where those parameters live that the loss reads and no update changes, if there are.

    Returns:
      A function (state, batch) or (state, batch, frozen parameters) to (next state, sums by name
      with `loss` and `grad_norm` among them). It consumes the state.
    """
    rows = named_sharding(mesh, ("batch", "length"))

    def summed(params: Any, batch: Batch, *frozen: Any) -> tuple[Any, Sums]:
        (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, *frozen)
        return grads, {"loss": loss, **sums}

    def accumulated(params: Any, batch: Batch, *frozen: Any) -> tuple[Any, Sums]:
        # Every accumulation-th row goes together, so that no row moves to another device.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
        )
        one = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(summed, params, one, *frozen)
        )

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            part = jax.lax.with_sharding_constraint(part, rows)
            return jax.tree.map(jnp.add, total, summed(params, part, *frozen)), None

        return jax.lax.scan(add, zeros, parts)[0]

    def step(state: TrainState, batch: Batch, *frozen: Any) -> tuple[TrainState, Sums]:
        grads, sums = (summed if accumulation == 1 else accumulated)(state.params, batch, *frozen)
        weight = jnp.maximum(sums["weight"], 1e-6)
        grads = jax.tree.map(lambda g: (g / weight).astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        sums = {**sums, "grad_norm": norm}
        return TrainState(params=params, opt_state=opt_state, update=state.update + 1), sums

    given = (placed, rows) if frozen is None else (placed, rows, frozen)
    return jax.jit(step, in_shardings=given, out_shardings=(placed, None), donate_argnums=0)
