"""Work that cannot be avoided: operations, and bytes that go through memory.

What a model does at least is counted from its shape. Divided by what a machine can do, this bounds
the time from below.
"""

from __future__ import annotations

import dataclasses

from agentrm_jax.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """Operations (a multiplication and an addition are two) and bytes."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def layer_weights(config: LlamaConfig) -> int:
    """Weights of all layers that are multiplied with."""
    attention = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * config.d_model * (attention + 3 * config.d_ff)


def _beside_keys_and_values(config: LlamaConfig) -> int:
    """Weights of one layer but for those of keys and values."""
    keys_and_values = 2 * config.d_model * config.num_kv_heads * config.head_dim
    return layer_weights(config) // config.num_layers - keys_and_values


def head_weights(config: LlamaConfig) -> int:
    return config.vocab_size * config.d_model


def attention_flops(config: LlamaConfig, pairs: float) -> float:
    """Of so many pairs of a query and a key that it sees."""
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * pairs


def kv_bytes(config: LlamaConfig, tokens: float, itemsize: int) -> float:
    return 2.0 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * itemsize


def reading(
    config: LlamaConfig, rows: float, tokens: int, before: int, shared_by: float, itemsize: int
) -> Work:
    """Reading rows of so many tokens behind `before` others, which some rows share; no logits. Of
    all tokens but each row's last, the last layer computes keys and values alone."""
    unread = rows * (tokens - 1)
    pairs = rows * tokens * (before + (tokens + 1) / 2) - unread * (before + tokens / 2) / (
        config.num_layers
    )
    moved = layer_weights(config) * itemsize
    moved += kv_bytes(config, rows * before / shared_by + rows * tokens, itemsize)
    weights = layer_weights(config) * rows * tokens - _beside_keys_and_values(config) * unread
    return Work(2.0 * weights + attention_flops(config, pairs), moved)


def decoding_token(
    config: LlamaConfig, rows: float, before: int, shared_by: float, own: float, itemsize: int
) -> Work:
    """One token more for each row, behind a prompt that some share and `own` tokens of its own."""
    weights = layer_weights(config) + head_weights(config)
    flops = 2.0 * weights * rows + attention_flops(config, rows * (before + own))
    moved = weights * itemsize + kv_bytes(config, rows * (before / shared_by + own), itemsize)
    return Work(flops, moved)


def training_flops(
    config: LlamaConfig,
    rows: int,
    tokens: int,
    *,
    logits: bool,
    frozen: bool = False,
    only: int | None = None,
) -> float:
    """An update on rows that are one sequence each: forwards, and twice as much backwards.

    What is computed anew to save memory is not counted, as usual for model FLOPs.

    Args:
      logits: Whether the loss has them.
      frozen: Whether the matrices stay as they are: their gradients are left out.
      only: Tokens of a row whose hidden states are wanted, if not of all: of the others, the last
        layer computes keys and values.
    """
    weights = layer_weights(config) + (head_weights(config) if logits else 0)
    products = (3 - frozen) * 2.0 * weights * rows * tokens
    pairs = rows * tokens * (tokens + 1) / 2
    flops = products + 3 * attention_flops(config, pairs)
    if only is None:
        return flops
    unread = rows * (tokens - only)
    pairs = unread * (tokens + 1) / 2 / config.num_layers
    flops -= (3 - frozen) * 2.0 * _beside_keys_and_values(config) * unread
    return flops - 3 * attention_flops(config, pairs)
