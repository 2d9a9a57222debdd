"""The machine's best speed, measured next to ours, and the fraction of it that we reach.

There are two ceilings: operations per second of a large matrix product, and bytes per second of a
large copy. Work is the number of operations and bytes that cannot be avoided. Divided by the
ceilings it gives two times; the work takes at least the longer one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.plan.work import Work
from benchmarks.measuring import Seconds, Side


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """Operations and bytes per second, measured with `threads` CPU threads."""

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
    """Returns the wall-clock seconds; on a CPU, which other processes also use, CPU-seconds per
    thread."""
    return taken.cpu / threads if jax.default_backend() == "cpu" else taken.wall


class Probes:
    """A large product and a large copy, which are timed as sides of the same comparison."""

    def __init__(self, dtype: Any, *, tiny: bool = False) -> None:
        on_cpu = jax.default_backend() == "cpu"
        self.width = 256 if tiny else 1536 if on_cpu else 8192
        self.length = 2**16 if tiny else 2**25 if on_cpu else 2**31
        self.dtype = dtype
        # Several in one call, so that the fixed cost of a call is small in comparison.
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
    """Copies with one program call for each copy: in one program they would be fused."""
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
