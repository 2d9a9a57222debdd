"""Low-rank adapters (Hu et al. 2021): matrices stay and learn a difference of low rank.

A matrix W [*out, *in] becomes W + alpha / rank * B A with A [rank, *in] and B [*out, rank]. B is
zero at first, so that training begins with the model as it is.
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
"""The matrices of a layer, and how many axes of each are its input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters. The rest of the model is frozen, but for a value head.

    Attributes:
      rank: Of each difference; 0 trains all parameters instead.
      alpha: The difference counts alpha / rank.
      matrices: Those of each layer that get an adapter.
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
        return self.alpha / self.rank


@flax.struct.dataclass
class Adapted:
    """What stands in the place of a matrix: `llama.project` adds both products.

    Attributes:
      base: The matrix, [*out, *in], or all layers' with a leading axis.
      a: [rank, *in].
      b: [*out, rank].
      scale: Of the difference.
    """

    base: Any
    a: Any
    b: Any
    scale: float = flax.struct.field(pytree_node=False)


def describe_adapters(description: Params, config: LoraConfig) -> Params:
    """The adapters of a described policy or reward model; they are split as its matrices are."""
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
    """Fresh adapters in float32, made where they belong."""
    description = describe_adapters(describe(shape), config)
    return jax.jit(
        lambda key: init_of(key, description, jnp.float32),
        out_shardings=shardings_of(description, mesh),
    )(key)


def parts(model: Params, adapters: Params) -> tuple[Params, Params]:
    """What is trained and what is frozen, of a policy or a reward model (or what describes it)."""
    head = {name: value for name, value in model.items() if name == "value_head"}
    frozen = {name: value for name, value in model.items() if name != "value_head"}
    return {"adapters": adapters, **head}, frozen


def adapted(
    loss_fn: Callable[[Any, Any], Any], config: LoraConfig
) -> Callable[[Any, Any, Any], Any]:
    """A loss of whole models as one of (trained parts, batch, frozen parts)."""

    def loss(trained: Params, batch: Any, frozen: Params) -> Any:
        def both(base: Any, own: Params) -> Adapted:
            return Adapted(base=base, a=own["a"], b=own["b"], scale=config.scale)

        return loss_fn(_whole(trained, frozen, both), batch)

    return loss


def merged(trained: Params, frozen: Params, config: LoraConfig) -> Params:
    """The model that the parts are, as one without adapters; each matrix keeps its dtype."""

    @jax.vmap
    def product(own: Params) -> jax.Array:
        return jnp.tensordot(own["b"], own["a"], 1, precision="highest")

    @jax.jit
    def add(base: jax.Array, own: Params) -> jax.Array:
        return (base.astype(jnp.float32) + config.scale * product(own)).astype(base.dtype)

    return _whole(trained, frozen, add)


def _whole(trained: Params, frozen: Params, make: Callable[[Any, Params], Any]) -> Params:
    """The model with each adapted matrix made of the matrix and its adapter."""
    trunk = frozen.get("trunk", frozen)
    made = {name: make(trunk["layers"][name], own) for name, own in trained["adapters"].items()}
    trunk = {**trunk, "layers": {**trunk["layers"], **made}}
    if "trunk" not in frozen:
        return trunk
    return {"trunk": trunk, "value_head": trained["value_head"]}
