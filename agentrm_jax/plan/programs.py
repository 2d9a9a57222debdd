"""Memory and collectives of a compiled program.

XLA's own counts (`cost_analysis`) include the body of a loop only once. Here loops are read from
the text of the program, and a collective in a loop counts once for each iteration.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from agentrm_jax.plan.hlo import Computation, Instruction, Module, groups_of, num_bytes, walk

KINDS: tuple[str, ...] = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on each device.

    Attributes:
      arguments: Arguments.
      outputs: Results, without those that reuse the memory of donated arguments.
      aliases: Results that reuse the memory of donated arguments.
      temporaries: Intermediate values.
      code: The program itself.
      peak: Most bytes of arguments, outputs and temporaries at one time, which share memory. The
        compiler for TPUs compares this number with the device. The one for GPUs does not report it:
        there it is their sum.
    """

    arguments: int
    outputs: int
    aliases: int = 0
    temporaries: int
    code: int
    peak: int

    @property
    def total(self) -> int:
        """Peak and code together."""
        return self.peak + self.code


def memory_of(compiled: Any) -> Memory:
    """Returns the memory of a `jax.stages.Compiled`."""
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    total = sizes.argument_size_in_bytes + outputs + sizes.temp_size_in_bytes
    return Memory(
        arguments=sizes.argument_size_in_bytes,
        outputs=outputs,
        aliases=sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        peak=getattr(sizes, "peak_memory_in_bytes", 0) or total,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Collectives of one kind.

    Attributes:
      count: Number of executions.
      bytes: Bytes that arrive at each device, in all of them together.
      network: Of these, the least that have to come from other hosts.
    """

    count: int
    bytes: float
    network: float = 0.0


def exchanges_of(module: Module, hosts: Sequence[int] = ()) -> dict[str, Exchange]:
    """Returns the collectives of a compiled program, by kind.

    A loop without a fixed number of iterations counts once.

    Args:
      module: The program, from `hlo.parse`.
      hosts: The host of each device in the order of the mesh; none if all share one.
    """
    counts: Counter[str] = Counter()
    sizes, network = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    for computation, instruction, times in walk(module):
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = groups_of(instruction.attributes)
        arriving = times * _arriving(
            instruction, kind, len(groups[0]) if groups else 1, computation
        )
        counts[kind] += times
        sizes[kind] += arriving
        network[kind] += arriving * max((_from_others(kind, g, hosts) for g in groups), default=0)
    return {
        kind: Exchange(count=counts[kind], bytes=sizes[kind], network=network[kind])
        for kind in KINDS
        if counts[kind]
    }


def _arriving(instruction: Instruction, kind: str, devices: int, computation: Computation) -> float:
    """The bytes that arrive at each device in one execution of a collective."""
    operands = [computation.instructions.get(name) for name in instruction.operands]
    size = sum(num_bytes(operand.shape) for operand in operands if operand is not None)
    if kind == "all-gather":
        return size * (devices - 1)
    if kind == "all-reduce":
        return 2 * size * (devices - 1) / devices
    if kind in ("reduce-scatter", "all-to-all"):
        return size * (devices - 1) / devices
    return size


def _from_others(kind: str, group: Sequence[int], hosts: Sequence[int]) -> float:
    """The fraction of what arrives at a device that has to come through the network of its host.

    The devices of a host share what they receive: each fetches a part and passes it on. Only what
    an all-to-all or a permutation sends is for one device.
    """
    if not hosts:
        return 0.0
    here = Counter(hosts[device] for device in group)
    devices, least = len(group), min(here.values())
    if len(here) == 1:
        return 0.0
    outside = (devices - least) / (devices - 1)
    return outside if kind in ("all-to-all", "collective-permute") else outside / least
