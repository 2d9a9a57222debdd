"""Low-rank adapters (Hu et al. 2021): matrices are frozen, and a low-rank difference is trained.

A matrix W [*out, *in] becomes W + alpha / rank * B A with A [rank, *in] and B [*out, rank]. B is
zero at first, so that training starts from the unchanged model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params, ParamSpec, describe, init_of, shardings_of

_INPUT_AXES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""The matrices of a layer, and the number of input axes of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of low-rank adapters. The rest of the model is frozen, except a value head.

    Attributes:
      rank: Rank of each difference; 0 trains all parameters instead.
      alpha: The difference is multiplied by alpha / rank.
      matrices: The matrices of each layer that have an adapter.
    """

    rank: int = 0
    alpha: float = 16.0
    matrices: Sequence[str] = tuple(_INPUT_AXES)

    def __post_init__(self) -> None:
        check_fields(self, rank="[0, 65536]", alpha="(0, inf)")
        for name in self.matrices:
            check_choice("matrices", name, _INPUT_AXES)
        if not self.matrices:
            raise UserError("must name at least one", field="matrices")

    @property
    def scale(self) -> float:
        """The factor of each difference."""
        return self.alpha / self.rank


@flax.struct.dataclass
class Adapted:
    """A matrix with an adapter; `llama.project` adds both products.

    Attributes:
      base: The matrix [*out, *in]; with a leading axis for stacked layers.
      a: [rank, *in], or stacked.
      b: [*out, rank], or stacked.
      scale: Factor of the difference.
    """

    base: Any
    a: Any
    b: Any
    scale: float = flax.struct.field(pytree_node=False)


def describe_adapters(description: Params, config: LoraConfig) -> Params:
    """Returns the description of the adapters of a described policy or reward model.

    They are sharded as the matrices are.
    """
    layers = description.get("trunk", description)["layers"]

    def pair(name: str) -> dict[str, ParamSpec]:
        whole: ParamSpec = layers[name]
        cut = len(whole.shape) - _INPUT_AXES[name]
        (layer, *outer), inner = whole.shape[:cut], whole.shape[cut:]
        (axis, *outer_axes), inner_axes = whole.axes[:cut], whole.axes[cut:]
        spread = 1 / math.sqrt(math.prod(inner))
        return {
            "a": ParamSpec((layer, config.rank, *inner), (axis, None, *inner_axes), spread),
            "b": ParamSpec((layer, *outer, config.rank), (axis, *outer_axes, None), 0.0),
        }

    return {name: pair(name) for name in config.matrices}


def init_adapters(key: jax.Array, shape: LlamaConfig, config: LoraConfig, mesh: Mesh) -> Params:
    """Returns initial adapters in float32, sharded over a mesh.

    Args:
      key: Random key.
      shape: Shape of the model.
      config: The adapters.
      mesh: The devices.
    """
    description = describe_adapters(describe(shape), config)
    return jax.jit(
        lambda key: init_of(key, description, jnp.float32),
        out_shardings=shardings_of(description, mesh),
    )(key)


def parts(model: Params, adapters: Params) -> tuple[Params, Params]:
    """Returns the trained and the frozen parameters of a policy or a reward model.

    Args:
      model: The parameters, or their description.
      adapters: The adapters, or their description.
    """
    head = {name: value for name, value in model.items() if name == "value_head"}
    frozen = {name: value for name, value in model.items() if name != "value_head"}
    return {"adapters": adapters, **head}, frozen


def adapted(
    loss_fn: Callable[[Any, Any], Any], config: LoraConfig
) -> Callable[[Any, Any, Any], Any]:
    """Returns a loss of whole models as a loss of (trained, batch, frozen parameters)."""

    def loss(trained: Params, batch: Any, frozen: Params) -> Any:
        def with_adapter(base: Any, adapter: Params) -> Adapted:
            return Adapted(base=base, a=adapter["a"], b=adapter["b"], scale=config.scale)

        return loss_fn(_whole(trained, frozen, with_adapter), batch)

    return loss


def merged(trained: Params, frozen: Params, config: LoraConfig) -> Params:
    """Returns the whole model without adapters; each matrix keeps its dtype."""

    @jax.vmap
    def product(adapter: Params) -> jax.Array:
        return jnp.tensordot(adapter["b"], adapter["a"], 1, precision="highest")

    @jax.jit
    def add(base: jax.Array, adapter: Params) -> jax.Array:
        return (base.astype(jnp.float32) + config.scale * product(adapter)).astype(base.dtype)

    return _whole(trained, frozen, add)


def _whole(trained: Params, frozen: Params, make: Callable[[Any, Params], Any]) -> Params:
    """Returns the whole model; each matrix with an adapter is replaced by the result of `make`."""
    trunk = frozen.get("trunk", frozen)
    layers = trunk["layers"]
    changed = {name: make(layers[name], adapter) for name, adapter in trained["adapters"].items()}
    trunk = {**trunk, "layers": {**layers, **changed}}
    if "trunk" not in frozen:
        return trunk
    return {"trunk": trunk, "value_head": trained["value_head"]}
