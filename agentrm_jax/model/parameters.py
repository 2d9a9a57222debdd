"""The parameters of a model: one description from which everything else is derived.

The description holds shape, logical axes and initialiser of each parameter. Initial values,
shardings and checkpoint targets are made from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from agentrm_jax.core.errors import UserError
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.sharding import named_sharding

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class ParamSpec:
    """The description of one parameter.

    Attributes:
      shape: The shape.
      axes: The logical name of each axis (`runtime.sharding`).
      scale: Standard deviation of the initial values; None initialises with ones.
      dtype: A fixed dtype; None for the dtype of the model.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    scale: float | None
    dtype: Any = None


def describe(config: LlamaConfig) -> Params:
    """Returns the description of a policy, a tree of `ParamSpec`.

    Layers are stacked along a leading axis. A matrix is [out, in], as `llama.project` takes it and
    as Hugging Face stores it.
    """
    L, D, F, V = config.num_layers, config.d_model, config.d_ff, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    into, out = 1 / math.sqrt(D), 1 / math.sqrt(2 * L)  # residual branches start small

    def layered(shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float | None):
        return ParamSpec((L, *shape), ("layers", *axes), scale)

    params: Params = {
        "embed": ParamSpec((V, D), ("vocab", "embed"), into),
        "layers": {
            "attention_norm": layered((D,), (None,), None),
            "q": layered((N, H, D), ("heads", "head_dim", "embed"), into),
            "k": layered((K, H, D), ("kv_heads", "head_dim", "embed"), into),
            "v": layered((K, H, D), ("kv_heads", "head_dim", "embed"), into),
            "o": layered((D, N, H), ("embed", "heads", "head_dim"), out / math.sqrt(N * H)),
            "mlp_norm": layered((D,), (None,), None),
            "gate": layered((F, D), ("mlp", "embed"), into),
            "up": layered((F, D), ("mlp", "embed"), into),
            "down": layered((D, F), ("embed", "mlp"), out / math.sqrt(F)),
        },
        "final_norm": ParamSpec((D,), (None,), None),
    }
    if config.traits.qkv_bias:
        params["layers"] |= {
            "q_bias": layered((N, H), ("heads", "head_dim"), 0.0),
            "k_bias": layered((K, H), ("kv_heads", "head_dim"), 0.0),
            "v_bias": layered((K, H), ("kv_heads", "head_dim"), 0.0),
        }
    if config.traits.head_norm:
        params["layers"] |= {
            "q_norm": layered((H,), ("head_dim",), None),
            "k_norm": layered((H,), ("head_dim",), None),
        }
    if not config.tie_embeddings:
        params["lm_head"] = ParamSpec((V, D), ("vocab", "embed"), into)
    return params


def describe_reward(config: LlamaConfig, outputs: int | None = None) -> Params:
    """Returns the description of a reward model: a policy's trunk and a value head in float32.

    Args:
      config: Shape of the trunk.
      outputs: K, the number of the head's outputs (`heads.ValueHead.outputs`).
    """
    trunk = describe(config)
    trunk.pop("lm_head", None)
    axes = () if outputs is None else (outputs,)
    head = {
        "kernel": ParamSpec((*axes, config.d_model), (None,) * (len(axes) + 1), 0.0, jnp.float32),
        "bias": ParamSpec(axes, (None,) * len(axes), 0.0, jnp.float32),
    }
    return {"trunk": trunk, "value_head": head}


DESCRIPTIONS = {"policy": describe, "reward": describe_reward}
"""The description of a model of each kind, from its shape."""


def _is_spec(value: Any) -> bool:
    return isinstance(value, ParamSpec)


def _sharding_of(spec: ParamSpec, mesh: Mesh) -> NamedSharding:
    sharding = named_sharding(mesh, spec.axes)
    for name, size, split in zip(spec.axes, spec.shape, sharding.spec, strict=True):
        if split is not None and size % mesh.shape[split]:
            raise UserError(
                f"must divide the model's {name}, {size}",
                field=f"mesh.{split}",
                value=mesh.shape[split],
            )
    return sharding


def shardings_of(description: Params, mesh: Mesh) -> Params:
    """Returns the sharding of each parameter of a description.

    Raises:
      UserError: The size of a mesh axis does not divide the axis of a parameter.
    """
    return jax.tree.map(lambda s: _sharding_of(s, mesh), description, is_leaf=_is_spec)


def abstract_of(description: Params, dtype: Any, mesh: Mesh) -> Params:
    """Returns shape, dtype and sharding of each parameter of a description, without memory.

    Raises:
      UserError: See `shardings_of`.
    """
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype or dtype, sharding=_sharding_of(s, mesh)),
        description,
        is_leaf=_is_spec,
    )


def init_of(key: jax.Array, description: Params, dtype: Any) -> Params:
    """Returns initial values, each from its own key, so that a new parameter changes no other."""
    paths, tree = jax.tree_util.tree_flatten_with_path(description, is_leaf=_is_spec)

    def make(path: Any, spec: ParamSpec) -> jax.Array:
        kind = spec.dtype or dtype
        if spec.scale is None:
            return jnp.ones(spec.shape, kind)
        name = jax.tree_util.keystr(path)
        param_key = jax.random.fold_in(key, sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31)
        values = jax.random.truncated_normal(param_key, -3, 3, spec.shape, jnp.float32)
        return (spec.scale * values).astype(kind)

    return jax.tree.unflatten(tree, [make(path, spec) for path, spec in paths])


def cast(params: Params, dtype: Any) -> Params:
    """Returns the parameters in another dtype; None leaves them as they are."""
    return params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params)


def shardings(config: LlamaConfig, mesh: Mesh) -> Params:
    """Returns the sharding of each parameter of a policy."""
    return shardings_of(describe(config), mesh)


def init(
    key: jax.Array, config: LlamaConfig, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """Returns the initial parameters of a policy.

    Args:
      key: Random key.
      config: The shape.
      dtype: Dtype of the parameters.
      mesh: The devices on which they are made, sharded; None for the default device.
    """
    make = functools.partial(init_of, description=describe(config), dtype=dtype)
    out = None if mesh is None else shardings(config, mesh)
    return jax.jit(make, out_shardings=out)(key)
