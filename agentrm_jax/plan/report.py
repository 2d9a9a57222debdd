"""The output of `agentrm plan`: plans of stages as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from agentrm_jax.plan.needs import Program, StagePlan
from agentrm_jax.plan.topologies import Topology
from agentrm_jax.plan.traffic import Traffic
from agentrm_jax.runtime.sharding import MeshConfig


def chips_line(topology: Topology, mesh: MeshConfig) -> str:
    """Returns one line on the chips and on the mesh that they form."""
    chip = topology.chip
    data, fsdp, tensor = mesh.shape(topology.num_chips)
    idle = topology.num_chips - data * fsdp * tensor
    network = f", network {chip.network / 1e9:.3g} GB/s" if chip.network else ""
    return (
        f"{topology.name}: {topology.num_chips} chips, each {_gib(chip.hbm)}, "
        f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s, links "
        f"{chip.links / 1e9:.0f} GB/s{network}; mesh data {data}, fsdp {fsdp}, tensor {tensor}"
        + (f"; {idle} chips stay idle" if idle else "")
    )


def stage_text(stage: StagePlan, topology: Topology, profile: bool = False) -> str:
    """Returns lines on memory, programs and advice of a stage.

    Args:
      stage: The plan of the stage.
      topology: The chips.
      profile: Whether the instructions that move most are listed.
    """
    verdict = "fits" if stage.fits else "DOES NOT FIT"
    lines = [
        "",
        f"{stage.name}: {verdict}, {_gib(stage.peak)} of {_gib(stage.hbm)} on each chip",
        *(f"  {name}: {_gib(size)}" for name, size in stage.resident.items()),
    ]
    for program in stage.programs:
        lines += _program_lines(program, topology)
        if profile and program.traffic is not None:
            lines += _profile_lines(program.traffic)
    lines += [f"  to change: {line}" for line in stage.advice]
    return "\n".join(lines)


def as_json(stages: Sequence[StagePlan], topology: Topology) -> dict[str, Any]:
    """Returns the plans of stages as JSON values."""
    return {
        "topology": topology.name,
        "chips": topology.num_chips,
        "chip": dataclasses.asdict(topology.chip),
        "fits": all(stage.fits for stage in stages),
        "stages": [
            {
                "stage": stage.name,
                "fits": stage.fits,
                "peak_bytes": stage.peak,
                "resident_bytes": dict(stage.resident),
                "programs": [
                    {
                        **dataclasses.asdict(program),
                        "least_seconds": program.least_seconds(topology),
                        "ratio_moved": program.ratio_moved,
                    }
                    for program in stage.programs
                ],
                "advice": list(stage.advice),
            }
            for stage in stages
        ],
    }


def _program_lines(program: Program, topology: Topology) -> Iterator[str]:
    yield f"  {program.name} (compiled in {program.compile_seconds:.0f} s)"
    memory = program.memory
    if memory is None:
        yield f"    memory       {_gib(program.needed or 0)}: too much for a chip"
    else:
        aliases = f" (and {_gib(memory.aliases)} in place)" if memory.aliases else ""
        yield (
            f"    memory       {_gib(memory.total)}: arguments {_gib(memory.arguments)}, "
            f"temporaries {_gib(memory.temporaries)}, outputs {_gib(memory.outputs)}"
            f"{aliases}, program {_gib(memory.code)}"
        )
        exchanges = [
            f"{kind} {exchange.count:,} ({_sent(exchange.bytes)})"
            for kind, exchange in program.exchanges.items()
        ]
        yield f"    collectives  {', '.join(exchanges) or 'none'}"
        if exchanges:
            yield f"    overlap      {_overlap(program)}"
    yield f"    operations   {_operations(program)}"
    least = program.least_seconds(topology)
    bounds = ", ".join(f"{name} {_seconds(value)}" for name, value in least.items())
    if program.traffic is not None and program.ratio_moved is not None:
        units = f" of {program.units} tokens" if program.units > 1 else ""
        yield (
            f"    moved        {_sent(program.traffic.bytes)} by a call{units}, "
            f"{program.ratio_moved:.2f} times the least"
        )
    yield f"    at least     {_seconds(max(least.values()))} for {program.unit} ({bounds})"


def _profile_lines(traffic: Traffic) -> Iterator[str]:
    kinds = (f"{kind} {_sent(size)}" for kind, size in traffic.by_kind.items())
    yield f"    by kind      {', '.join(kinds)}"
    for move in traffic.largest:
        share = move.bytes / traffic.bytes
        times = f"{move.times:,.0f} x"
        yield (
            f"    {share:6.1%} {_sent(move.bytes):>9} {times:>9} {move.kind:12} "
            f"{move.source or move.scope or '?'} ({move.name})"
        )


def _overlap(program: Program) -> str:
    exchanges = program.exchanges.values()
    return (
        f"{sum(e.overlapped for e in exchanges):,} of {sum(e.count for e in exchanges):,} "
        f"collectives overlap other work ({_sent(sum(e.overlapped_bytes for e in exchanges))} of "
        f"{_sent(sum(e.bytes for e in exchanges))})"
    )


def _operations(program: Program) -> str:
    text = f"{program.model_flops:.3g} FLOP of the model, {program.work.flops:.3g} on each chip"
    if program.xla_flops is not None:
        text += f" (XLA counts {program.xla_flops:.3g}, loops once)"
    return text


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size > 2**27 else f"{size / 2**20:.1f} MiB"


def _sent(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size > 1e8 else f"{size / 1e6:.3g} MB"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
