"""The sizes of a model that is trained from random parameters."""

from __future__ import annotations

import dataclasses

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a Llama that is trained from random parameters.

    A run uses them if `policy` is not set.

    Attributes:
      vocab_size: Largest number of tokens of the tokenizer, which is trained first.
      d_model: Width of the hidden states.
      num_layers: Number of layers.
      num_heads: Query heads of a layer.
      num_kv_heads: Key and value heads of a layer; must divide `num_heads`.
      head_dim: Width of a head; must be even.
      d_ff: Width of the feed-forward layer.
      rope_theta: Base of the rotary frequencies.
    """

    vocab_size: int = 1024
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 64
    d_ff: int = 384
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            vocab_size="[1, inf)",
            d_model="[1, inf)",
            num_layers="[1, inf)",
            num_heads="[1, inf)",
            num_kv_heads="[1, inf)",
            head_dim="[2, inf)",
            d_ff="[1, inf)",
            rope_theta="(0, inf)",
        )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"must divide num_heads, {self.num_heads}",
                field="num_kv_heads",
                value=self.num_kv_heads,
            )
        if self.head_dim % 2:
            raise UserError(field="head_dim", value=self.head_dim, expected="even")
