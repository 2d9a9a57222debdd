"""The memory that an engine needs on a device, computed before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.memory import check_need, host_bytes, smallest_device_bytes

OTHERS = ("page_size", "siblings")
"""Sizes that need no memory of their own."""


def head_bytes(head_dim: int, number: int, kv: str | None) -> int:
    """Returns the bytes of the key or of the value of one token and head, in the page pool.

    Args:
      head_dim: Numbers of a head.
      number: Bytes of a number of the model.
      kv: `engine.kv`.
    """
    return head_dim * number if kv is None else head_dim + 4  # a scale in float32


def least_bytes(
    shape: Mapping[str, int], sizes: Mapping[str, Any], number: int, tensor: int, data: int
) -> int:
    """Returns the least bytes that an engine needs on each device, without the parameters.

    Args:
      shape: `num_layers`, `num_kv_heads`, `head_dim`, `d_model` and `vocab_size` of the model.
      sizes: The engine's sizes and `kv`, by name.
      number: Bytes of a number.
      tensor: Devices over which heads and vocabulary are split.
      data: Devices over which sequences are divided.
    """
    heads = math.ceil(shape["num_kv_heads"] / tensor)
    head = head_bytes(shape["head_dim"], number, sizes["kv"])
    token = 2 * shape["num_layers"] * heads * head  # keys and values
    pages = sizes["context"] // sizes["page_size"] + sizes["max_segments"]
    pool = max(sizes["cache_tokens"], sizes["context"], sizes["instruction_tokens"]) * token
    read = sizes["extend_rows"] * sizes["extend_tokens"]
    batch = sizes["extend_batch"] or read // 2
    reading = read * token + batch * shape["d_model"] * number
    tables = (sizes["decode_rows"] + sizes["extend_rows"] // sizes["siblings"]) * pages * 8
    logits = sizes["decode_rows"] * shape["vocab_size"] * 4 // tensor
    decoding = sizes["decode_rows"] * sizes["decode_tokens"] * token + logits
    return pool + (reading + tables + decoding) // data


def check_memory(
    config: LlamaConfig, sizes: Any, dtype: Any, mesh: jax.sharding.Mesh | None
) -> None:
    """Checks that a device can hold an engine.

    Args:
      config: The model's shape.
      sizes: An `EngineConfig`.
      dtype: The type of the parameters.
      mesh: The devices, or None for the first one.

    Raises:
      UserError: A size is too large; the message names it and the largest value that could fit.
    """
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.local_devices)
    tensor, data = (1, 1) if mesh is None else (mesh.shape["tensor"], mesh.shape["data"])
    shape, number = dataclasses.asdict(config), np.dtype(dtype).itemsize
    numbers = {k: v for k, v in dataclasses.asdict(sizes).items() if isinstance(v, int)}
    usual = {f"engine.{name}": getattr(type(sizes)(), name) for name in numbers}

    def need(values: Mapping[str, int]) -> int:
        tried = {key.removeprefix("engine."): value for key, value in values.items()}
        return least_bytes(shape, {**numbers, **tried, "kv": sizes.kv}, number, tensor, data)

    values = {f"engine.{name}": value for name, value in numbers.items() if name not in OTHERS}
    check_need(need, values, usual, smallest_device_bytes(devices))


def free_tokens(config: LlamaConfig, sizes: Any, dtype: Any, mesh: jax.sharding.Mesh | None) -> int:
    """Returns the tokens whose keys and values fit into three quarters of the free memory.

    For devices that do not report their memory (CPUs): into a sixteenth of the machine's memory.

    Args:
      config: The model's shape.
      sizes: An `EngineConfig`.
      dtype: The type of the parameters.
      mesh: The devices, or None for the first one.
    """
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.local_devices)
    split = 1 if mesh is None else mesh.shape["tensor"]
    head = head_bytes(config.head_dim, np.dtype(dtype).itemsize, sizes.kv)
    token = 2 * config.num_layers * config.num_kv_heads * head // split
    free = [
        stats["bytes_limit"] - stats["bytes_in_use"] if (stats := d.memory_stats()) else None
        for d in devices
    ]
    if known := [f for f in free if f is not None]:
        return max(1, int(0.75 * min(known)) // token)
    return max(1, host_bytes() // 16 // token)
