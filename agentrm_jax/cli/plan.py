"""`agentrm plan`: compiles a run for TPUs or GPUs on any machine and prints whether it fits."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from agentrm_jax.cli.parser import Parser
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown

_DESCRIPTION = """\
Compiles the programs of a run's stages for TPUs or NVIDIA GPUs, on any machine without them or any
weights (of a model's folder only config.json or model.json is read), and allocates nothing of the
models' size. The compilers: pip install 'agentrm-jax[tpu]' or 'agentrm-jax[gpu-plan]'.

Topologies: the chips along each axis of TPUs; GPUs, or hosts and the GPUs of each; FILE.yaml:8 for
a chip of your own: `like: h100`, and what differs (memory_gib, tflops, bandwidth_gbs, links_gbs).

For every program (training updates, prefill, decoding) it prints the memory on each chip, the
collectives with the bytes that arrive, operations, bytes moved through memory as a multiple of the
least, and the shortest time that arithmetic, memory and links allow. XLA's own count of operations
counts loops once. Figures of decoding are for one token of every row, with contexts that are half
full. The step of a beam that scores while it decodes (evaluate.beam.score_at: action) is left out.

Exit status: 0 fits, 1 does not fit (what to change is printed), 2 the input is wrong."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("config", metavar="CONFIG", type=pathlib.Path, help="a YAML file")
    parser.add_argument(
        "--topology", metavar="KIND:CHIPS", required=True, help="v5p:4x4x4, h100:8, h100:4x8, ..."
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        action="append",
        default=[],
        help="sft, explore, train-rm, sample, train-implicit, calibrate or evaluate; can be "
        "repeated (default: the stages that the configuration needs)",
    )
    parser.add_argument("--profile", action="store_true", help="list the lines that move most")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.plan.topologies import parse_topology

    topology = parse_topology(given.topology)

    from agentrm_jax.pipeline.load_config import load_config

    config = load_config(given.config, given.overrides)

    import jax

    jax.config.update("jax_platforms", "cpu")  # leaves the devices of this machine alone
    topology.devices()

    from agentrm_jax.pipeline.stages import stages_of
    from agentrm_jax.plan import capacity, report

    for name in given.stage:
        if name not in capacity.STAGES:
            choices = ", ".join(capacity.STAGES)
            raise UserError(f"--stage must be one of {choices} (got {shown(name)})")
    needed = given.stage or [s.name for s in stages_of(config) if s.name in capacity.STAGES]

    def on_compile(stage: str, program: str) -> None:
        print(f"{stage}: compiling ({program}) ...", file=sys.stderr, flush=True)

    plans = []
    if not given.json:
        print(report.chips_line(topology, config.mesh), flush=True)
    for stage in capacity.plan(config, topology, needed, on_compile):
        plans.append(stage)
        if not given.json:
            print(report.stage_text(stage, topology, given.profile), flush=True)
    if given.json:
        print(json.dumps({"config": str(given.config), **report.as_json(plans, topology)}))
    return 0 if all(stage.fits for stage in plans) else 1
