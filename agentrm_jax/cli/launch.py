"""`agentrm launch KIND CONFIG`: starts a run in some place, or prints what would start it."""

from __future__ import annotations

import argparse
import pathlib
import sys

from agentrm_jax.cli.parser import Parser, choice, whole_number

_DESCRIPTION = """\
Starts a run, or a stage of it, on this machine or elsewhere. The places: local (one process),
processes (several on this machine), slurm (sbatch), ray (the worker command in Ray actors), jobset
(Kubernetes), skypilot, tpu-pod (gcloud). --dry-run prints the script or the manifest, which is
complete and can be changed by hand; without it, local, processes, slurm and ray start it, and
jobset, skypilot and tpu-pod are refused.

CONFIG is read and checked here. The processes must see it under the same path, except for a
jobset, whose manifest contains it. --output must be one folder that all of them see; with
--leases.store each host has a folder of its own. The same command resumes after an interruption."""


def add_arguments(parser: Parser) -> None:
    from agentrm_jax.launch.kinds import KINDS

    parser.description = _DESCRIPTION
    add = parser.add_argument
    add("kind", help="the place", **{**choice(*KINDS), "metavar": "KIND"})
    add("config", metavar="CONFIG", type=pathlib.Path, help="a YAML file")
    add("--output", metavar="DIR", required=True, help="folder of the run, as the processes see it")
    add("--stage", metavar="NAME", default="run", help="one stage (default: run, all of them)")
    add("--hosts", metavar="N", type=whole_number(1, 100_000), help="processes (default: 1)")
    add(
        "--mode",
        help="with leases, processes may join and die; joined ones compute together and end "
        "together (default: alone for one process; for several, joined for stages that train, "
        "else leases)",
        **choice("alone", "leases", "joined"),
    )
    add("--gpus", metavar="[TYPE:]N", help="GPUs of each process")
    add("--tpu", metavar="KIND:AxB", help="TPUs of each process, or the slice of joined ones")
    add("--name", metavar="NAME", help="name of the job or of the TPU (default: agentrm)")
    add("--queue", metavar="NAME", help="partition of SLURM, or queue of Kueue")
    add("--time", metavar="LIMIT", help="time limit of SLURM, HH:MM:SS")
    add("--image", metavar="IMAGE", help="image of the containers, with agentrm installed")
    add("--volume", metavar="NAME:/PATH", help="shared volume, and its path for the processes")
    add("--zone", metavar="ZONE", help="zone of the TPU")
    add("--program", metavar="WORDS", default="agentrm", help="command to start (default: agentrm)")
    add("--dry-run", action="store_true", help="print the script or the manifest")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.launch.kinds import render
    from agentrm_jax.launch.requests import PLACE_OPTIONS, job_of
    from agentrm_jax.launch.start import start

    job = job_of(
        given.kind,
        given.config,
        given.output,
        stage=given.stage,
        overrides=given.overrides,
        program=given.program,
        options={name: getattr(given, name) for name in PLACE_OPTIONS},
    )
    text = render(job, given.words)
    if not given.dry_run:
        return start(given.kind, text)
    sys.stdout.write(text)
    return 0
