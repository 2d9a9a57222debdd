"""TPU topologies by name, and their devices as compilation targets on machines without TPUs.

The compiler comes with libtpu and supports every topology; it needs no TPU.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """A kind of chip. Source: cloud.google.com/tpu/docs/v5e, /v5p and /v6e.

    Attributes:
      hbm: Bytes of memory that the compiler lets a program use.
      flops: Peak FLOP/s in bfloat16.
      bandwidth: Bytes/s between memory and chip.
      links: Bytes/s to all neighbours together, in one direction.
      axes: Number of axes of a topology.
      accelerator: First part of a slice's accelerator type, such as `v5p` in `v5p-128`.
      cores: Cores of a chip that the number in an accelerator type counts.
    """

    hbm: float
    flops: float
    bandwidth: float
    links: float
    axes: int
    accelerator: str
    cores: int = 1


CHIPS = {
    "v5e": Chip(
        hbm=15.75 * GIB, flops=197e12, bandwidth=819e9, links=200e9, axes=2,
        accelerator="v5litepod",
    ),
    "v5p": Chip(
        hbm=95.74 * GIB, flops=459e12, bandwidth=2765e9, links=600e9, axes=3,
        accelerator="v5p", cores=2,
    ),
    "v6e": Chip(
        hbm=31.25 * GIB, flops=918e12, bandwidth=1638e9, links=400e9, axes=2,
        accelerator="v6e",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """A slice of connected chips.

    Attributes:
      name: For example `v5p:4x4x4`.
      chip: The kind of chip.
      sizes: Chips along each axis.
    """

    name: str
    chip: Chip
    sizes: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """Number of chips on all axes."""
        return math.prod(self.sizes)

    def devices(self) -> Sequence[Any]:
        """Returns the chips as `jax.Device`s: programs can be compiled for them, not run on them.

        Raises:
          UserError: The compiler is missing, or does not support the topology.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("the TPU compiler is missing: pip install 'agentrm-jax[tpu]'")
        return _devices(self)


@functools.cache  # a second description would have other device objects
def _devices(topology: Topology) -> tuple[Any, ...]:
    from jax.experimental import topologies

    chip = topology.chip
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server about this machine
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no process uses a chip
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{chip.accelerator}-{topology.num_chips * chip.cores}",
    }
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    try:
        return tuple(topologies.get_topology_desc(topology.name, "tpu").devices)
    except Exception as error:  # the plugin raises several kinds
        reason = first_line(error)
        raise UserError(
            f"--topology: the compiler does not support {topology.name!r} ({reason})"
        ) from None


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name such as `v5p:4x4x4`.

    Raises:
      UserError: The name is not that of a topology.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    sizes = tuple(int(size) for size in match[2].split("x")) if match else ()
    chip = CHIPS.get(match[1]) if match else None
    if chip is None or len(sizes) != chip.axes or 0 in sizes:
        raise UserError(
            f"--topology: unknown topology {name!r}; expected the kind and the chips along each "
            f"axis, such as v5e:4x4, v6e:4x4 or v5p:4x4x4 (known kinds: {', '.join(CHIPS)})"
        )
    return Topology(name=name, chip=chip, sizes=sizes)
