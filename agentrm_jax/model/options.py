"""The options of a forward pass, as one record that every layer of the program passes on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from agentrm_jax.model.attention import Backend

REMAT = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""The activations of a layer that the backward pass finds saved: all (`none`), none (`block`: the
layer is recomputed) or the products with its matrices (`dots`: everything else is recomputed)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ForwardOptions:
    """Options of a forward pass: they change memory, speed and rounding, never what is computed.

    Attributes:
      mesh: The devices over which arrays are split, or None for one device.
      attention: Name of the attention backend (`model.attention.BACKENDS`).
      remat: What the backward pass recomputes: one of `REMAT`.
      dtype: Dtype of parameters and activations; None for the dtype of the parameters.
      vocab_chunks: Number of chunks of the vocabulary whose logits are computed one after another.
        With more than one, the logits of all tokens are never in memory together, nor are their
        gradients.
    """

    mesh: Mesh | None = None
    attention: str = "xla"
    remat: str = "none"
    dtype: Any = None
    vocab_chunks: int = 1

    @property
    def backend(self) -> Backend:
        """The attention backend on the mesh."""
        return Backend(name=self.attention, mesh=self.mesh)


DEFAULT_OPTIONS = ForwardOptions()
"""One device, no recomputation, the parameters' dtype, all logits at once."""
