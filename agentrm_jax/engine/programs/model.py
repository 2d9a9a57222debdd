"""A model as compiled programs take it: parameters, page pool and readout in one record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from agentrm_jax.engine.cache.pages import Pool
from agentrm_jax.model.config import LlamaConfig

Readout = Callable[[Any, jax.Array], jax.Array]
"""(head, hidden states [R, D]) to scores [R] float32."""


@flax.struct.dataclass
class LoadedModel:
    """A model on the device.

    Attributes:
      params: The parameters as `model.llama` reads them, layer by layer.
      pool: The keys and values of all tokens that the model has prefilled.
      head: The parameters of the readout.
      config: The shape of the model.
      readout: For models that score: (head, hidden states [R, D]) to scores [R] float32.
    """

    params: Any
    pool: Pool
    head: Any = None
    config: LlamaConfig = flax.struct.field(pytree_node=False, kw_only=True)
    readout: Readout | None = flax.struct.field(pytree_node=False, default=None)
