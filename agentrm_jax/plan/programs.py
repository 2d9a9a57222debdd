"""Memory and collectives of a compiled program.

XLA's own counts (`cost_analysis`) include the body of a loop only once. Here loops are read from
the text of the program, and a collective in a loop counts once for each iteration. The text is in
the order of the schedule, so that it also shows which collectives overlap with other work.
"""

from __future__ import annotations

import dataclasses
import re
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
      overlapped: Executions with other work in the schedule between their start and their end.
      overlapped_bytes: Bytes that arrive at each device in those.
    """

    count: int
    bytes: float
    network: float = 0.0
    overlapped: int = 0
    overlapped_bytes: float = 0.0


def exchanges_of(module: Module, hosts: Sequence[int] = ()) -> dict[str, Exchange]:
    """Returns the collectives of a compiled program, by kind.

    A loop without a fixed number of iterations counts once.

    Args:
      module: The program, from `hlo.parse`.
      hosts: The host of each device in the order of the mesh; none if all share one.
    """
    counts: Counter[str] = Counter()
    overlapped: Counter[str] = Counter()
    sizes, network, hidden = (dict.fromkeys(KINDS, 0.0) for _ in range(3))
    spread = _spread(module)
    for computation, instruction, times in walk(module):
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        hides = spread.get((computation.name, _channel(instruction)), False)
        if hides is None:
            continue
        groups = groups_of(instruction.attributes)
        arriving = times * _arriving(
            instruction, kind, len(groups[0]) if groups else 1, computation
        )
        counts[kind] += times
        sizes[kind] += arriving
        network[kind] += arriving * max((_from_others(kind, g, hosts) for g in groups), default=0)
        if hides or overlaps(instruction, computation):
            overlapped[kind] += times
            hidden[kind] += arriving
    return {
        kind: Exchange(
            count=counts[kind],
            bytes=sizes[kind],
            network=network[kind],
            overlapped=overlapped[kind],
            overlapped_bytes=hidden[kind],
        )
        for kind in KINDS
        if counts[kind]
    }


_WORK = {
    "call", "conditional", "convolution", "custom-call", "dot", "fusion", "ragged-dot", "reduce",
    "scatter", "sort", "while",
}  # fmt: skip


def overlaps(start: Instruction, computation: Computation) -> bool:
    """Returns whether other work lies in the schedule between a collective's start and its end.

    Work are fusions, products, kernels, loops; copies and other collectives are none. A collective
    without an end of its own is synchronous.

    Args:
      start: The collective, or what starts it.
      computation: The computation that holds it.
    """
    end = computation.ends.get(start.name)
    if end is None or '"is_sync":true' in start.attributes:
        return False
    return _work_between(start, end, computation)


def _work_between(start: Instruction, end: Instruction, computation: Computation) -> bool:
    order = list(computation.instructions)
    between = order[order.index(start.name) + 1 : order.index(end.name)]
    return any(_is_work(computation.instructions[name]) for name in between)


def _is_work(instruction: Instruction) -> bool:
    if instruction.name.startswith(("async-collective-start", "async-collective-done")):
        return False
    if re.search(r'target="(AllocateBuffer|Sharding|\w*Barrier)"', instruction.attributes):
        return False
    return instruction.operation in _WORK


def _spread(module: Module) -> dict[tuple[str, str], bool | None]:
    """Whether other work overlaps the collectives of computations that others call.

    The compiler for TPUs writes an asynchronous collective as several fusions: its start, products
    that it runs next to, its end. Each holds the collective, with the same channel.

    Returns:
      By computation and channel; None if the collective has started in an earlier fusion, so that
      it does not count again.
    """
    spread: dict[tuple[str, str], bool | None] = {}
    for computation in module.computations.values():
        steps: dict[str, list[tuple[Instruction, str]]] = {}
        for instruction in computation.instructions.values():
            if instruction.operation in ("fusion", "async-start"):
                for name in instruction.called:
                    for channel in _channels(module.computations.get(name)):
                        steps.setdefault(channel, []).append((instruction, name))
        for channel, ((first, name), *others) in steps.items():
            end = others[-1][0] if others else first
            hides = overlaps(first, computation) or _work_between(first, end, computation)
            spread[name, channel] = hides
            spread |= {(other, channel): None for _, other in others}
    return spread


def _channels(computation: Computation | None) -> list[str]:
    """The channels of the collectives of a computation."""
    instructions = computation.instructions.values() if computation is not None else ()
    return [_channel(each) for each in instructions if each.operation in KINDS]


def _channel(instruction: Instruction) -> str:
    """The channel of a collective; its name if it has none."""
    channel = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
    return channel[1] if channel else instruction.name


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
