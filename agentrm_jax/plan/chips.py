"""The chips that programs are planned for: one table with sources, and chips of a user's own."""

from __future__ import annotations

import dataclasses
import pathlib

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.pipeline.load_config import load_as

GIB = 2**30

USABLE = 0.95
"""The fraction of a GPU's memory that a run can use: XLA_PYTHON_CLIENT_MEM_FRACTION=.95."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuTarget:
    """The names of a kind of TPU for its compiler.

    Attributes:
      axes: Number of axes of a topology.
      accelerator: First part of a slice's accelerator type, such as `v5p` in `v5p-128`.
      cores: Cores of a chip that the number in an accelerator type counts.
    """

    axes: int
    accelerator: str
    cores: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GpuTarget:
    """The properties of a GPU that its compiler asks for.

    Attributes:
      memory: Bytes of memory, as the driver reports them.
      compute_capability: Major and minor number.
      processors: Streaming multiprocessors.
      shared_memory: Bytes of shared memory that a block can ask for.
      processor_memory: Bytes of shared memory of a multiprocessor.
      processor_threads: Threads of a multiprocessor.
      cache: Bytes of the second-level cache.
      clock_ghz: Highest clock rate.
    """

    memory: int
    compute_capability: tuple[int, int]
    processors: int
    shared_memory: int
    processor_memory: int
    processor_threads: int = 2048
    cache: int
    clock_ghz: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """A kind of chip.

    Attributes:
      name: As in a topology's name.
      hbm: Bytes of memory that a program can use: of a TPU what its compiler allows, of a GPU
        `USABLE` of its memory.
      flops: Peak FLOP/s in bfloat16, without sparsity.
      bandwidth: Bytes/s between memory and chip.
      links: Bytes/s to all neighbours together, in one direction. For GPUs: to those of its host.
      network: Bytes/s between hosts in one direction, as one GPU's fraction of its host's; 0 for
        TPUs, whose links connect hosts as well.
      source: Where the figures are published.
      target: The description for the compiler.
    """

    name: str
    hbm: float
    flops: float
    bandwidth: float
    links: float
    network: float = 0.0
    source: str
    target: TpuTarget | GpuTarget


_TPUS = "cloud.google.com/tpu/docs/{}"
_HOPPER = {"shared_memory": 232_448, "processor_memory": 233_472, "cache": 50 * 2**20}

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e", hbm=15.75 * GIB, flops=197e12, bandwidth=819e9, links=200e9,
            source=_TPUS.format("v5e"), target=TpuTarget(axes=2, accelerator="v5litepod"),
        ),
        Chip(
            name="v5p", hbm=95.74 * GIB, flops=459e12, bandwidth=2765e9, links=600e9,
            source=_TPUS.format("v5p"), target=TpuTarget(axes=3, accelerator="v5p", cores=2),
        ),
        Chip(
            name="v6e", hbm=31.25 * GIB, flops=918e12, bandwidth=1638e9, links=400e9,
            source=_TPUS.format("v6e"), target=TpuTarget(axes=2, accelerator="v6e"),
        ),
        Chip(  # SXM, 80 GB; a DGX A100 has 8 x 200 Gbit/s
            name="a100", hbm=USABLE * 84_987_740_160, flops=312e12, bandwidth=2039e9,
            links=300e9, network=25e9,
            source="NVIDIA A100 datasheet; CUDA C++ Programming Guide, compute capabilities",
            target=GpuTarget(
                memory=84_987_740_160, compute_capability=(8, 0), processors=108,
                shared_memory=166_912, processor_memory=167_936, cache=40 * 2**20, clock_ghz=1.41,
            ),
        ),
        Chip(  # links: PCIe 4.0 x16; a host with eight has 100 Gbit/s
            name="l4", hbm=USABLE * 23_580_639_232, flops=121e12, bandwidth=300e9,
            links=32e9, network=1.56e9,
            source="NVIDIA L4 datasheet; cloud.google.com/compute/docs/gpus (g2-standard-96)",
            target=GpuTarget(
                memory=23_580_639_232, compute_capability=(8, 9), processors=58,
                shared_memory=101_376, processor_memory=102_400, processor_threads=1536,
                cache=48 * 2**20, clock_ghz=2.04,
            ),
        ),
        Chip(  # SXM; a DGX H100 has 8 x 400 Gbit/s
            name="h100", hbm=USABLE * 84_978_434_048, flops=989e12, bandwidth=3352e9,
            links=450e9, network=50e9, source="NVIDIA H100 datasheet; DGX H100 user guide",
            target=GpuTarget(
                memory=84_978_434_048, compute_capability=(9, 0), processors=132,
                clock_ghz=1.98, **_HOPPER,
            ),
        ),
        Chip(  # SXM; a DGX H200 has 8 x 400 Gbit/s
            name="h200", hbm=USABLE * 150_754_820_096, flops=989e12, bandwidth=4800e9,
            links=450e9, network=50e9, source="NVIDIA H200 datasheet; DGX H200 user guide",
            target=GpuTarget(
                memory=150_754_820_096, compute_capability=(9, 0), processors=132,
                clock_ghz=1.98, **_HOPPER,
            ),
        ),
        Chip(  # an eighth of a DGX B200: 1,440 GB, 64 TB/s; 8 x 400 Gbit/s
            name="b200", hbm=USABLE * 180e9, flops=2250e12, bandwidth=8000e9,
            links=900e9, network=50e9, source="NVIDIA DGX B200 datasheet",
            target=GpuTarget(
                memory=180_000_000_000, compute_capability=(10, 0), processors=148,
                shared_memory=232_448, processor_memory=233_472, cache=126 * 2**20,
                clock_ghz=1.965,
            ),
        ),
    )
}  # fmt: skip
"""The chips by name. The properties of GPUs are those that the CUDA driver reports."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipFile:
    """A chip of the user's own, as a YAML file describes it.

    Attributes:
      like: The known chip that has everything that is not given here.
      name: The name to print; the file's name if it is empty.
      source: Where the figures are published.
      memory_gib: GiB of memory. A program can use 95% of a GPU's, all of a TPU's.
      tflops: Peak TFLOP/s in bfloat16, without sparsity.
      bandwidth_gbs: GB/s between memory and chip.
      links_gbs: GB/s to the neighbours, in one direction.
      network_gbs: GB/s between hosts, for each GPU.
      processors: Streaming multiprocessors of a GPU.
      compute_capability: Of a GPU, as `9.0`.
      shared_memory: Bytes of shared memory that a block of a GPU can ask for.
    """

    like: str
    name: str = ""
    source: str = "the user's file"
    memory_gib: float | None = None
    tflops: float | None = None
    bandwidth_gbs: float | None = None
    links_gbs: float | None = None
    network_gbs: float | None = None
    processors: int | None = None
    compute_capability: str | None = None
    shared_memory: int | None = None

    def __post_init__(self) -> None:
        check_choice("like", self.like, CHIPS)
        positive = ("memory_gib", "tflops", "bandwidth_gbs", "links_gbs", "network_gbs")
        check_fields(
            self,
            **dict.fromkeys(positive, "(0, inf)"),
            processors="[1, inf)",
            shared_memory="[1, inf)",
        )
        of_gpus = ("network_gbs", "processors", "compute_capability", "shared_memory")
        if isinstance(CHIPS[self.like].target, TpuTarget):
            for name in of_gpus:
                if getattr(self, name) is not None:
                    raise UserError(f"must be left out: {self.like} is a TPU", field=name)
        if self.compute_capability is not None:
            _capability(self.compute_capability)

    def chip(self, name: str) -> Chip:
        """Returns the chip.

        Args:
          name: The name of a chip whose file gives none.
        """
        like = CHIPS[self.like]
        target = like.target
        hbm = like.hbm if self.memory_gib is None else self.memory_gib * GIB
        if isinstance(target, GpuTarget):
            capability = self.compute_capability
            memory = target.memory if self.memory_gib is None else int(hbm)
            target = dataclasses.replace(
                target,
                memory=memory,
                processors=self.processors or target.processors,
                shared_memory=self.shared_memory or target.shared_memory,
                compute_capability=target.compute_capability
                if capability is None
                else _capability(capability),
            )
            hbm = USABLE * memory
        return Chip(
            name=self.name or name,
            hbm=hbm,
            flops=_scaled(self.tflops, 1e12, like.flops),
            bandwidth=_scaled(self.bandwidth_gbs, 1e9, like.bandwidth),
            links=_scaled(self.links_gbs, 1e9, like.links),
            network=_scaled(self.network_gbs, 1e9, like.network),
            source=self.source,
            target=target,
        )


def _scaled(value: float | None, unit: float, otherwise: float) -> float:
    return otherwise if value is None else value * unit


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise UserError(
            field="compute_capability", value=text, expected="two numbers in quotes, as '9.0'"
        )
    return int(major), int(minor)


def load_chip(path: pathlib.Path) -> Chip:
    """Returns the chip that a YAML file describes (`ChipFile`).

    Raises:
      UserError: The file is missing or refused; the message names the key and the line.
    """
    return load_as(ChipFile, path).chip(path.stem)
