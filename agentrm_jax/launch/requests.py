"""Makes a job from the options of `agentrm launch`, and checks that its place takes them."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown
from agentrm_jax.launch.job import DEFAULT_NAME, Job, Mode, Tpu, parse_gpus, parse_tpu, parse_volume
from agentrm_jax.launch.kinds import KINDS, Kind, check_config
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.stages import STAGES, StageSpec, depends_on

PLACE_OPTIONS = (
    "hosts", "mode", "gpus", "tpu", "name", "queue", "time", "image", "volume", "zone",
)  # fmt: skip
"""The options that only some places take."""


def job_of(
    kind: str,
    config: pathlib.Path,
    output: str,
    *,
    stage: str,
    overrides: Sequence[str],
    program: str,
    options: Mapping[str, Any],
) -> Job:
    """Returns the job that options describe; the configuration is read and checked.

    Args:
      kind: The place.
      config: A YAML file.
      output: Folder of the run, as the processes see it.
      stage: `run`, or one stage.
      overrides: `--KEY=VALUE` words of the configuration.
      program: The command that starts `agentrm` there.
      options: Options of `PLACE_OPTIONS`; absent or None if they are not given.

    Raises:
      UserError: The place does not take an option, an option is missing, or a value or the
        configuration is refused.
    """
    place = KINDS[kind]
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(place, given)
    spec = _stage(load_config(config, overrides), stage)
    if "image" in place.options:
        check_config(config)
    tpu = parse_tpu(given["tpu"]) if "tpu" in given else None
    gpus, gpu_type = parse_gpus(given["gpus"]) if "gpus" in given else (0, "")
    if tpu is not None and gpus:
        raise UserError("--gpus cannot be given together with --tpu")
    _check_type(kind, gpus, gpu_type)
    mode = _mode(place, spec, given, tpu)
    return Job(
        kind=kind,
        config=config,
        output=output,
        stage=stage,
        overrides=tuple(overrides),
        hosts=_hosts(given, mode, tpu),
        mode=mode,
        gpus=gpus,
        gpu_type=gpu_type,
        tpu=tpu,
        name=given.get("name", DEFAULT_NAME),
        queue=given.get("queue", ""),
        time=given.get("time", ""),
        image=given.get("image", ""),
        volume=parse_volume(given["volume"]) if "volume" in given else None,
        zone=given.get("zone", ""),
        program=tuple(shlex.split(program)),
    )


def _check_options(place: Kind, given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in place.options:
            takes = ", ".join(f"--{each}" for each in place.options) or "no such option"
            raise UserError(f"--{name}: not an option of {place.name}, which takes {takes}")
    for name in place.required:
        if name not in given:
            raise UserError(f"--{name} is missing: {place.name} needs it")


def _stage(config: RunConfig, name: str) -> StageSpec | None:
    """The stage of a configuration, None for all stages."""
    if name == "run":
        return None
    for spec in STAGES:
        if spec.name == name:
            depends_on(config, spec)
            return spec
    names = ", ".join(["run", *(spec.name for spec in STAGES)])
    raise UserError(f"--stage must be one of {names} (got {shown(name)})")


def _check_type(kind: str, gpus: int, gpu_type: str) -> None:
    if kind == "skypilot" and gpus and not gpu_type:
        raise UserError(f"--gpus: skypilot needs their type as well, such as H100:{gpus}")
    if kind in ("processes", "ray") and gpu_type:
        raise UserError(f"--gpus: {kind} takes a number without a type (got {gpu_type}:{gpus})")


def _mode(place: Kind, spec: StageSpec | None, given: Mapping[str, Any], tpu: Tpu | None) -> Mode:
    """The mode that is given, or the one that suits the stage."""
    if "mode" not in place.options:
        return "joined" if place.name == "tpu-pod" else "alone"
    work = "share" if spec is None else spec.processes
    hosts = given.get("hosts", 1)
    slice_hosts = 1 if tpu is None else tpu.hosts
    if work == "first" and max(hosts, slice_hosts) > 1:
        raise UserError(f"--hosts must be 1: {given_stage(spec)} runs in one process")
    several = "joined" if work == "together" or slice_hosts > 1 else "leases"
    mode = given.get("mode") or (several if max(hosts, slice_hosts) > 1 else "alone")
    if mode == "leases" and work == "together":
        raise UserError(f"--mode must be joined: processes of {given_stage(spec)} compute together")
    if mode == "leases" and slice_hosts > 1:
        raise UserError(
            "--mode must be joined: a process with leases has the chips of one host; give the "
            f"slice of one host as --tpu (got {slice_hosts} hosts)"
        )
    return mode


def given_stage(spec: StageSpec | None) -> str:
    """Returns the name of a stage, `run` for all of them."""
    return "run" if spec is None else spec.name


def _hosts(given: Mapping[str, Any], mode: Mode, tpu: Tpu | None) -> int:
    """The number of hosts; for joined TPUs, that of the slice."""
    if mode == "joined" and tpu is not None:
        if given.get("hosts", tpu.hosts) != tpu.hosts:
            raise UserError(f"--hosts must be {tpu.hosts}, the hosts of this slice, or absent")
        return tpu.hosts
    return given.get("hosts", 1)
