"""`agentrm plan`: whether a run fits TPUs, told by their compiler on any machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown

_USAGE = """\
usage: agentrm plan CONFIG --topology KIND:CHIPS [--stage NAME ...] [--json] [--KEY=VALUE ...]

Compiles what the stages of a run do on TPUs, with the TPU compiler, on any machine: no TPU is
needed, no weights, and nothing of the models' size is allocated. Of a model's folder only its
shape is read (config.json or model.json). Needs libtpu: pip install 'agentrm-jax[tpu]'.

  --topology KIND:CHIPS  chips along each axis: v5e:4x4, v6e:4x4, v5p:4x4x4
  --stage NAME           one of sft, explore, train-rm, sample, train-implicit, evaluate; may be
                         given again. Without it, those that the configuration needs
  --json                 print one JSON object
  --KEY=VALUE            any key of the configuration, such as --mesh.fsdp=16

Printed of every program (the update of a training stage; reading and decoding of the others):
memory on each chip, collectives by kind with the bytes that arrive at each chip, operations, and
the least time that the chip's arithmetic, memory and links allow. What XLA itself counts is
printed beside: it takes a loop over layers once. For decoding, all this is of one token of every
row; contexts are taken to be half full. The step of a beam that scores while it decodes
(evaluate.beam.score_at: action) is left out. A large model takes minutes to compile.

Exit status: 0 fits, 1 does not fit (what to change is printed), 2 the input is wrong.
"""


def main(arguments: Sequence[str], usage: str = "agentrm plan") -> int:
    """Runs the command; returns its exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE, end="")
        return 0 if arguments else 2
    own = argparse.ArgumentParser(prog=usage, add_help=False, allow_abbrev=False)
    own.add_argument("config", type=pathlib.Path, nargs="?")
    own.add_argument("--topology")
    own.add_argument("--stage", action="append", default=[])
    own.add_argument("--json", action="store_true")
    known, overrides = own.parse_known_args(arguments)
    for name, given in (("CONFIG", known.config), ("--topology", known.topology)):
        if given is None:
            raise UserError(f"{name} is missing: {usage} CONFIG --topology v5p:4x4x4")

    from agentrm_jax.plan.chips import parse_topology

    topology = parse_topology(known.topology)

    from agentrm_jax.pipeline.load_config import load_config

    config = load_config(known.config, overrides)

    import jax

    jax.config.update("jax_platforms", "cpu")  # this machine's own devices are not asked for
    topology.devices()

    from agentrm_jax.pipeline.stages import stages_of
    from agentrm_jax.plan import capacity

    for name in known.stage:
        if name not in capacity.STAGES:
            choices = ", ".join(capacity.STAGES)
            raise UserError(f"--stage must be one of {choices} (got {shown(name)})")
    needed = known.stage or [s.name for s in stages_of(config) if s.name in capacity.STAGES]

    def on_compile(stage: str, program: str) -> None:
        print(f"{stage}: compiling ({program}) ...", file=sys.stderr, flush=True)

    found = []
    if not known.json:
        print(_chips(topology, config), flush=True)
    for stage in capacity.plan(config, topology, needed, on_compile):
        found.append(stage)
        if not known.json:
            print(_text(stage, topology), flush=True)
    if known.json:
        print(json.dumps(_as_json(known.config, topology, found)))
    return 0 if all(stage.fits for stage in found) else 1


def _chips(topology: Any, config: Any) -> str:
    chip = topology.chip
    data, fsdp, tensor = config.mesh.shape(topology.num_chips)
    idle = topology.num_chips - data * fsdp * tensor
    return (
        f"{topology.name}: {topology.num_chips} chips, each {_gib(chip.hbm)}, "
        f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s, links "
        f"{chip.links / 1e9:.0f} GB/s; mesh data {data}, fsdp {fsdp}, tensor {tensor}"
        + (f"; {idle} chips stay idle" if idle else "")
    )


def _text(stage: Any, topology: Any) -> str:
    verdict = "fits" if stage.fits else "DOES NOT FIT"
    lines = [
        "",
        f"{stage.name}: {verdict}, {_gib(stage.peak)} of {_gib(stage.hbm)} on each chip",
        *(f"  {name}: {_gib(size)}" for name, size in stage.resident.items()),
    ]
    for program in stage.programs:
        lines.append(f"  {program.name} (compiled in {program.compile_seconds:.0f} s)")
        memory = program.memory
        if memory is None:
            lines.append(f"    memory       {_gib(program.needed or 0)}: too much for a chip")
        else:
            lines.append(
                f"    memory       {_gib(memory.total)}: arguments {_gib(memory.arguments)}, "
                f"temporaries {_gib(memory.temporaries)}, outputs {_gib(memory.outputs)}, program "
                f"{_gib(memory.code)}"
            )
        exchanges = (
            f"{kind} {e.count:,} ({_sent(e.bytes)})" for kind, e in program.exchanges.items()
        )
        if memory is not None:
            lines.append(f"    collectives  {', '.join(exchanges) or 'none'}")
        lines.append(f"    operations   {_operations(program, topology)}")
        least = program.least_seconds(topology)
        parts = ", ".join(f"{name} {_seconds(value)}" for name, value in least.items())
        lines.append(
            f"    at least     {_seconds(max(least.values()))} for {program.unit} ({parts})"
        )
    lines += [f"  to change: {line}" for line in stage.advice]
    return "\n".join(lines)


def _operations(program: Any, topology: Any) -> str:
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


def _as_json(config: pathlib.Path, topology: Any, stages: Sequence[Any]) -> dict[str, Any]:
    return {
        "config": str(config),
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
                    }
                    for program in stage.programs
                ],
                "advice": list(stage.advice),
            }
            for stage in stages
        ],
    }
