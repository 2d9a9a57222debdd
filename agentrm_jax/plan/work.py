"""Lower bounds of work: the operations and memory traffic that a model's shape makes unavoidable.

Divided by what a machine can do, they bound the time from below.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from agentrm_jax.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NumberBytes:
    """Bytes of a number in memory, of which scales have their part.

    Attributes:
      weights: Of a weight.
      kv: Of a number of keys and values.
    """

    weights: float
    kv: float

    @classmethod
    def of(cls, dtype: Any) -> NumberBytes:
        """Returns the bytes if all numbers have one dtype."""
        size = np.dtype(dtype).itemsize
        return cls(weights=size, kv=size)


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """Operations and memory traffic.

    Attributes:
      flops: Operations; a multiplication and an addition are two.
      bytes: Bytes that move between memory and chip.
    """

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def layer_weights(config: LlamaConfig) -> int:
    """Returns the number of weights in the matrices of all layers."""
    attention = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * config.d_model * (attention + 3 * config.d_ff)


def _weights_without_kv(config: LlamaConfig) -> int:
    """The weights of one layer without those of keys and values."""
    keys_and_values = 2 * config.d_model * config.num_kv_heads * config.head_dim
    return layer_weights(config) // config.num_layers - keys_and_values


def head_weights(config: LlamaConfig) -> int:
    """Returns the number of weights in the matrix that computes logits."""
    return config.vocab_size * config.d_model


def attention_flops(config: LlamaConfig, pairs: float) -> float:
    """Returns the operations of attention in all layers.

    Args:
      config: The model's shape.
      pairs: Pairs of a query and a key that is visible to it, in one layer.
    """
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * pairs


def kv_bytes(config: LlamaConfig, tokens: float, number: NumberBytes) -> float:
    """Returns the bytes of the keys and values of tokens in all layers."""
    return 2.0 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * number.kv


def reading(
    config: LlamaConfig,
    rows: float,
    tokens: int,
    before: int,
    shared_by: float,
    number: NumberBytes,
) -> Work:
    """Returns the work of a prefill call, without logits.

    For all tokens but the last of each row, the last layer computes keys and values only.

    Args:
      config: The model's shape.
      rows: Rows of the call.
      tokens: New tokens of each row.
      before: Tokens of the context that they follow.
      shared_by: Rows that share a context, whose keys and values are read once for all of them.
      number: Bytes of a number.
    """
    without_output = rows * (tokens - 1)
    pairs = rows * tokens * (before + (tokens + 1) / 2)
    pairs -= without_output * (before + tokens / 2) / config.num_layers
    weights = layer_weights(config) * rows * tokens - _weights_without_kv(config) * without_output
    traffic = layer_weights(config) * number.weights
    traffic += kv_bytes(config, rows * before / shared_by + rows * tokens, number)
    return Work(2.0 * weights + attention_flops(config, pairs), traffic)


def decoding_token(
    config: LlamaConfig,
    rows: float,
    before: int,
    shared_by: float,
    decoded: float,
    number: NumberBytes,
) -> Work:
    """Returns the work of decoding one token in every row.

    Args:
      config: The model's shape.
      rows: Rows of the call.
      before: Tokens of the prompt.
      shared_by: Rows that share a prompt, whose keys and values are read once for all of them.
      decoded: Tokens of a row that follow the prompt.
      number: Bytes of a number.
    """
    weights = layer_weights(config) + head_weights(config)
    flops = 2.0 * weights * rows + attention_flops(config, rows * (before + decoded))
    traffic = weights * number.weights
    traffic += kv_bytes(config, rows * (before / shared_by + decoded), number)
    return Work(flops, traffic)


def training_flops(
    config: LlamaConfig,
    rows: int,
    tokens: int,
    *,
    logits: bool,
    frozen: bool = False,
    outputs: int | None = None,
) -> float:
    """Returns the operations of an update on rows that are one sequence each.

    The backward pass takes twice the operations of the forward pass. Recomputation that saves
    memory is not counted, as usual for model FLOPs.

    Args:
      config: The model's shape.
      rows: Rows of a batch.
      tokens: Tokens of a row.
      logits: Whether the loss needs logits.
      frozen: Whether the matrices are frozen, so that they need no gradients.
      outputs: Tokens of a row whose hidden states the loss needs; None for all. For the other
        tokens the last layer computes keys and values only.
    """
    passes = 2 if frozen else 3  # forward, gradients of inputs, gradients of weights
    weights = layer_weights(config) + (head_weights(config) if logits else 0)
    pairs = rows * tokens * (tokens + 1) / 2
    flops = passes * 2.0 * weights * rows * tokens + 3 * attention_flops(config, pairs)
    if outputs is None:
        return flops
    without_output = rows * (tokens - outputs)
    flops -= passes * 2.0 * _weights_without_kv(config) * without_output
    pairs = without_output * (tokens + 1) / 2 / config.num_layers
    return flops - 3 * attention_flops(config, pairs)
