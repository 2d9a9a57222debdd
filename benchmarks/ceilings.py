"""What the machine could do at best, measured beside, and how much of it is reached.

Two ceilings: the arithmetic of a large product of matrices, and the bytes of a large copy. Work is
counted as operations and bytes that cannot be avoided; the least seconds it takes are those of the
ceiling that binds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.model.config import LlamaConfig
from benchmarks.measuring import Seconds, Side


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """Operations and bytes of a second; `threads` is how many CPU threads worked."""

    flops: float
    bandwidth: float
    threads: int

    def least_seconds(self, work: Work) -> float:
        return max(work.flops / self.flops, work.bytes / self.bandwidth)

    def seconds(self, side: Side) -> float:
        return seconds(side.median, self.threads)

    def as_json(self) -> dict[str, float]:
        return {"flops_per_second": self.flops, "bytes_per_second": self.bandwidth}


def seconds(taken: Seconds, threads: int) -> float:
    """The wall clock, or on a CPU, where others disturb it, the CPU-seconds of each thread."""
    return taken.cpu / threads if jax.default_backend() == "cpu" else taken.wall


class Probes:
    """A large product and a large copy, to be timed as sides beside what is measured."""

    def __init__(self, dtype: Any, *, tiny: bool = False) -> None:
        on_cpu = jax.default_backend() == "cpu"
        self.width = 256 if tiny else 1536 if on_cpu else 8192
        self.length = 2**16 if tiny else 2**25 if on_cpu else 2**31
        self.dtype = dtype
        # Several in one call, so that a call's own cost does not count.
        self._repeats = 4
        self._a = jnp.ones((self.width, self.width), dtype) / self.width
        self._x = jnp.ones(self.length, dtype)

    def sides(self) -> dict[str, Callable[[int], Any]]:
        return {
            "large product": lambda _: jax.block_until_ready(_product(self._a, self._repeats)),
            "large copy": lambda _: jax.block_until_ready(_copy(self._x, self._repeats)),
        }

    def ceilings(self, sides: Mapping[str, Side], threads: int) -> Ceilings:
        taken = {name: seconds(sides[name].median, threads) for name in self.sides()}
        moved = 2 * self.length * np.dtype(self.dtype).itemsize  # read and written
        return Ceilings(
            flops=self._repeats * 2 * self.width**3 / taken["large product"],
            bandwidth=self._repeats * moved / taken["large copy"],
            threads=threads,
        )


@jax.jit
def _once(x: jax.Array) -> jax.Array:
    return x + 1


def _copy(x: jax.Array, repeats: int) -> jax.Array:
    """Programs one after another: in one program they would be fused."""
    for _ in range(repeats):
        x = _once(x)
    return x


@jax.jit
def _product_once(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


def _product(a: jax.Array, repeats: int) -> jax.Array:
    b = a
    for _ in range(repeats):
        b = _product_once(a, b)
    return b


def layer_weights(config: LlamaConfig) -> int:
    """Weights of all layers that are multiplied with."""
    attention = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * config.d_model * (attention + 3 * config.d_ff)


def head_weights(config: LlamaConfig) -> int:
    return config.vocab_size * config.d_model


def attention_flops(config: LlamaConfig, pairs: float) -> float:
    """Of so many pairs of a query and a key that it sees."""
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * pairs


def kv_bytes(config: LlamaConfig, tokens: float, itemsize: int) -> float:
    return 2.0 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * itemsize


def reading(
    config: LlamaConfig, rows: int, tokens: int, before: int, shared_by: float, itemsize: int
) -> Work:
    """Reading rows of so many tokens behind `before` others, which some rows share; no logits."""
    pairs = rows * tokens * (before + (tokens + 1) / 2)
    moved = layer_weights(config) * itemsize
    moved += kv_bytes(config, rows * before / shared_by + rows * tokens, itemsize)
    flops = 2.0 * layer_weights(config) * rows * tokens + attention_flops(config, pairs)
    return Work(flops, moved)


def decoding_token(
    config: LlamaConfig, rows: int, before: int, shared_by: float, own: float, itemsize: int
) -> Work:
    """One token more for each row, behind a prompt that some share and `own` tokens of its own."""
    weights = layer_weights(config) + head_weights(config)
    flops = 2.0 * weights * rows + attention_flops(config, rows * (before + own))
    moved = weights * itemsize + kv_bytes(config, rows * (before / shared_by + own), itemsize)
    return Work(flops, moved)
