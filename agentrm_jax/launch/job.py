"""A job: a run, or a stage of it, with the place that starts it, its processes and devices.

Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Literal

from agentrm_jax.core.addresses import is_store_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable, shown

Mode = Literal["alone", "leases", "joined"]

DEFAULT_NAME = "agentrm"
PORT = 8476
"""Port of the first of several processes that join."""

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_GPUS = re.compile(r"(?:([A-Za-z][\w.-]*):)?(\d{1,4})")
_TPU = re.compile(r"(v5e|v5p|v6e):(\d{1,4}(?:x\d{1,4}){1,2})")
_TIME = re.compile(r"(\d+-)?\d+(:\d{2}){0,2}")
_VOLUME = re.compile(r"([a-z0-9][-a-z0-9.]*):(/[^:\s]+)")
_SET_HERE = ("distributed.", "leases.enabled")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuKind:
    """A kind of TPU.

    Attributes:
      axes: Axes of its topologies.
      gke: Its name on nodes of Kubernetes.
      slice: First part of a slice's name, such as `v5p` in `v5p-128`.
      cores: Cores of a chip that the number in a slice's name counts.
      largest_host: Most chips of a slice that one host has.
      host: Chips of each host of a larger slice.
    """

    axes: int
    gke: str
    slice: str
    cores: int
    largest_host: int
    host: int = 4


TPUS = {
    "v5e": TpuKind(axes=2, gke="tpu-v5-lite-podslice", slice="v5litepod", cores=1, largest_host=8),
    "v5p": TpuKind(axes=3, gke="tpu-v5p-slice", slice="v5p", cores=2, largest_host=4),
    "v6e": TpuKind(axes=2, gke="tpu-v6e-slice", slice="v6e", cores=1, largest_host=8),
}
"""Names and hosts as Google documents them for Cloud TPU and for GKE."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tpu:
    """A slice of TPUs.

    Attributes:
      kind: Its kind.
      topology: Chips along each axis, such as `2x4`.
    """

    kind: TpuKind
    topology: str

    @property
    def chips(self) -> int:
        """Number of chips of the slice."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        """Number of hosts of the slice."""
        return 1 if self.chips <= self.kind.largest_host else self.chips // self.kind.host

    @property
    def slice(self) -> str:
        """Name of a slice of this size, such as `v5litepod-16`."""
        return f"{self.kind.slice}-{self.chips * self.kind.cores}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A command that is to be started on some hosts.

    Attributes:
      kind: The place, one of `kinds.KINDS`.
      config: A YAML file.
      output: Folder of the run, as the processes see it.
      stage: `run`, or one stage.
      overrides: `--KEY=VALUE` words of the configuration.
      hosts: Number of processes, each on a host or with GPUs of its own.
      mode: `alone`, one process; `leases`, processes that may join and die; `joined`, processes
        that compute together and end together.
      gpus: GPUs of each process.
      gpu_type: Type of the GPUs, as the place names it.
      tpu: TPUs of each process, or of all that are joined.
      name: Name of the job, or of the TPU.
      queue: Partition of SLURM, or queue of Kueue.
      time: Limit of SLURM.
      image: Image of containers.
      volume: Name of a volume, and the path at which the processes see it.
      zone: Zone of the TPU.
      program: The words that start `agentrm` there.
    """

    kind: str
    config: pathlib.Path
    output: str
    stage: str = "run"
    overrides: tuple[str, ...] = ()
    hosts: int = 1
    mode: Mode = "alone"
    gpus: int = 0
    gpu_type: str = ""
    tpu: Tpu | None = None
    name: str = DEFAULT_NAME
    queue: str = ""
    time: str = ""
    image: str = ""
    volume: tuple[str, str] | None = None
    zone: str = ""
    program: tuple[str, ...] = ("agentrm",)

    def __post_init__(self) -> None:
        for word in self.overrides:
            key = word.removeprefix("--")
            if key.startswith(_SET_HERE):
                raise UserError(f"{shown(word)}: is set by launch; give --hosts and --mode instead")
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"--name must be at most 40 lower-case letters, digits and - (got "
                f"{shown(self.name)})"
            )
        if self.time and not _TIME.fullmatch(self.time):
            raise UserError(f"--time must be MINUTES or HH:MM:SS (got {shown(self.time)})")
        if is_store_url(self.output):
            raise UserError(
                f"--output {shown(self.output)}: must be a folder of a file system; to share a run "
                "through a bucket, give a folder of each host and --leases.store=URL"
            )
        for option, text in (("queue", self.queue), ("image", self.image), ("zone", self.zone)):
            if printable(text) != text or any(mark in text for mark in " '\"\\$`#"):
                raise UserError(
                    f"--{option} must have no blanks, quotes or any of \\$`# (got {shown(text)})"
                )

    @property
    def joined(self) -> bool:
        """Whether the processes compute together."""
        return self.mode == "joined"

    @property
    def leased(self) -> bool:
        """Whether the processes may join and die."""
        return self.mode == "leases"

    def command(self, config: str | None = None) -> tuple[str, ...]:
        """Returns the words of the worker command, without the address at which processes join.

        Args:
          config: Path of the configuration on the hosts, if it differs there.
        """
        shared = ("--leases.enabled=true",) if self.leased else ()
        path = str(self.config) if config is None else config
        return (*self.program, self.stage, path, "--output", self.output, *self.overrides, *shared)


def parse_gpus(text: str) -> tuple[int, str]:
    """Returns the number of GPUs and their type from a text such as `8` or `H100:8`.

    Raises:
      UserError: The text has another form.
    """
    match = _GPUS.fullmatch(text)
    if match is None or int(match[2]) == 0:
        raise UserError(f"--gpus must be N or TYPE:N, such as H100:8 (got {shown(text)})")
    return int(match[2]), match[1] or ""


def parse_tpu(text: str) -> Tpu:
    """Returns the slice that a text such as `v5e:2x4` names.

    Raises:
      UserError: The text has another form, or no slice has this topology.
    """
    match = _TPU.fullmatch(text)
    if match is None or len(match[2].split("x")) != TPUS[match[1]].axes:
        raise UserError(f"--tpu must be v5e:AxB, v6e:AxB or v5p:AxBxC (got {shown(text)})")
    tpu = Tpu(kind=TPUS[match[1]], topology=match[2])
    if tpu.chips == 0 or (tpu.hosts > 1 and tpu.chips % tpu.kind.host):
        raise UserError(f"--tpu {text}: its chips must be a multiple of {tpu.kind.host}")
    return tpu


def parse_volume(text: str) -> tuple[str, str]:
    """Returns the name of a volume and its path from a text such as `shared:/shared`.

    Raises:
      UserError: The text has another form.
    """
    match = _VOLUME.fullmatch(text)
    if match is None:
        raise UserError(f"--volume must be NAME:/PATH, such as shared:/shared (got {shown(text)})")
    return match[1], match[2]
