"""Topologies of chips by name, such as `v5p:4x4x4` or `h100:4x8`."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.plan import compilers
from agentrm_jax.plan.chips import CHIPS, Chip, TpuTarget, load_chip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """Chips that are connected with each other.

    Attributes:
      name: For example `v5p:4x4x4` or `h100:4x8`.
      chip: The kind of chip.
      sizes: Chips along each axis of TPUs; hosts and GPUs of a host.
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
        target = self.chip.target
        if isinstance(target, TpuTarget):
            return compilers.tpu_devices(self.name, target, self.num_chips)
        hosts, gpus = self.sizes
        return compilers.gpu_devices(self.chip.name, target, self.chip.bandwidth, hosts, gpus)


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name such as `v5p:4x4x4`, `h100:8` or `my_chip.yaml:2x8`.

    Raises:
      UserError: The name is not that of a topology, or the file of the chip is refused.
    """
    match = re.fullmatch(r"(.+):(\d+(?:x\d+)*)", name)
    kind = match[1] if match else ""
    sizes = tuple(int(size) for size in match[2].split("x")) if match else ()
    of_file = kind.endswith((".yaml", ".yml"))
    chip = load_chip(pathlib.Path(kind)) if of_file else CHIPS.get(kind)
    if chip is not None and not isinstance(chip.target, TpuTarget) and len(sizes) == 1:
        sizes = (1, *sizes)
    if chip is None or len(sizes) != _num_axes(chip) or 0 in sizes:
        raise UserError(
            f"--topology: unknown topology {name!r}; expected a chip and a number along each axis, "
            "such as v5p:4x4x4, or GPUs, such as h100:8, or hosts and the GPUs of each, such "
            f"as h100:4x8 (known chips: {', '.join(CHIPS)}; one of your own: FILE.yaml:8)"
        )
    return Topology(name=name, chip=chip, sizes=sizes)


def _num_axes(chip: Chip) -> int:
    return chip.target.axes if isinstance(chip.target, TpuTarget) else 2
