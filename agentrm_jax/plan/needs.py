"""Plans of stages: what they need of a chip's memory, and what to change if it is too much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.engine.cache.memory import head_bytes
from agentrm_jax.engine.config import EIGHT_BIT_PAGES
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.plan.programs import Exchange, Memory
from agentrm_jax.plan.topologies import Topology
from agentrm_jax.plan.traffic import Assumed, Traffic
from agentrm_jax.plan.work import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program of a stage.

    Attributes:
      name: What it does.
      unit: The unit that `least_seconds` counts: an update, a token of every row, a call.
      work: Least work of a unit on each chip.
      model_flops: FLOPs of a unit on all chips together, without recomputation that saves memory.
      compile_seconds: How long the compiler took.
      handed: Bytes of arguments on each chip that are resident anyway.
      memory: The memory that it needs; None if it does not fit.
      needed: Bytes that it would need according to the compiler, if it does not fit.
      exchanges: Collectives by kind. For decoding, those of one token.
      units: Units of one execution: the tokens of a call of decoding.
      assumed: What is assumed to count `traffic`.
      traffic: The bytes that one execution moves; None if it does not fit.
      xla_flops: XLA's own count of operations on each chip; it counts a loop's body only once.
    """

    name: str
    unit: str
    work: Work
    model_flops: float
    compile_seconds: float = 0.0
    handed: float
    memory: Memory | None = None
    needed: float | None = None
    exchanges: Mapping[str, Exchange] = dataclasses.field(default_factory=dict)
    units: int = 1
    assumed: Assumed = dataclasses.field(default_factory=Assumed)
    traffic: Traffic | None = None
    xla_flops: float | None = None

    @property
    def ratio_moved(self) -> float | None:
        """The bytes that an execution moves, divided by the least; None if it does not fit."""
        if self.traffic is None or not self.work.bytes:
            return None
        return self.traffic.bytes / (self.units * self.work.bytes)

    def least_seconds(self, topology: Topology) -> dict[str, float]:
        """Returns lower bounds of the seconds of a unit, by what bounds it: the chip's arithmetic,
        its memory, its links to other chips and, between hosts of GPUs, the network."""
        chip, exchanges = topology.chip, self.exchanges.values()
        network = sum(e.network for e in exchanges)
        least = {
            "arithmetic": self.work.flops / chip.flops,
            "memory": self.work.bytes / chip.bandwidth,
            "links": sum(e.bytes for e in exchanges) / chip.links,
        }
        if chip.network and network:
            least["network"] = network / chip.network
        return least


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The needs of a stage on each chip.

    Attributes:
      name: The stage.
      resident: Bytes that stay on the chip throughout the stage, by what they hold.
      programs: The programs; their arguments are resident, or small.
      hbm: Bytes of memory that a chip has.
      advice: What to change if it does not fit.
    """

    name: str
    resident: Mapping[str, float]
    programs: Sequence[Program]
    hbm: float
    advice: Sequence[str]

    @property
    def peak(self) -> float:
        """Most bytes in use: those that are resident, and what the largest program adds."""
        added = []
        for program in self.programs:
            total = program.memory.total if program.memory else program.needed or math.inf
            added.append(total - program.handed)
        return sum(self.resident.values()) + max(added, default=0)

    @property
    def fits(self) -> bool:
        """Whether every program fits next to what is resident."""
        return all(p.memory is not None for p in self.programs) and self.peak <= self.hbm


def training_advice(config: RunConfig, mesh: Mesh, plan: StagePlan) -> list[str]:
    """Returns what would save memory, the cheapest change first; nothing if the stage fits."""
    if plan.fits:
        return []
    key, train = {
        "sft": ("sft", config.sft),
        "train-rm": ("train_rm", config.train_rm),
        "train-implicit": ("train_implicit", config.train_implicit),
    }[plan.name]
    fit = train.fit
    row_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    advice = []
    if fit.attention == "xla" and mesh.devices.flat[0].platform != "gpu":
        advice.append(f"{key}.fit.attention: pallas keeps no scores in memory")
    if getattr(train, "vocab_chunks", 0) == 1:
        advice.append(f"{key}.vocab_chunks: 6 (say) computes the logits in parts of the vocabulary")
    if config.dtype == "float32":
        advice.append("dtype: bfloat16 halves activations")
    if fit.remat != "block":
        advice.append(f"{key}.fit.remat: block recomputes each layer (a third more arithmetic)")
    if (rows := fit.batch_size // fit.accumulation // row_shards) > 1:
        more = fit.accumulation * rows
        advice.append(f"{key}.fit.accumulation: {more} gives each chip one row at a time")
    if mesh.shape["data"] > 1:
        advice.append("mesh: data 1, fsdp -1 splits parameters and optimizer over all chips")
    if train.optimizer.moments == "float32":
        advice.append(f"{key}.optimizer.moments: bfloat16 takes half of the memory for them")
    if not train.lora.rank and config.policy is not None:
        advice.append(f"{key}.lora.rank: 16 (say) trains adapters only")
    advice.append(
        f"more chips, or a smaller {key}.fit.length: parameters and optimizer alone take "
        f"{sum(plan.resident.values()) / 2**30:.1f} GiB of each"
    )
    return advice


def inference_advice(
    config: RunConfig, mesh: Mesh, policy: LlamaConfig, plan: StagePlan
) -> list[str]:
    """Returns what would save memory in a stage that samples; nothing if the stage fits."""
    if plan.fits:
        return []
    advice = []
    sizes, excess = config.engine, plan.peak - plan.hbm
    head = head_bytes(policy.head_dim, jnp.dtype(config.dtype).itemsize, sizes.kv)
    token = 2 * policy.num_layers * policy.num_kv_heads * head / mesh.shape["tensor"]
    if config.dtype == "float32":
        advice.append("dtype: bfloat16 halves parameters and pages")
    pages = sum(size for name, size in plan.resident.items() if "pages" in name)
    if pages > excess:
        fewer = math.ceil(excess / token)
        advice.append(f"engine.cache_tokens: about {fewer:,} fewer for each of its engines")
    if sizes.weights is None:
        advice.append("engine.weights: int8 halves the models' parameters (of bfloat16)")
    if sizes.kv is None and sizes.attention in EIGHT_BIT_PAGES:
        advice.append("engine.kv: int8 halves pages (of bfloat16)")
    doubled = 2 * mesh.shape["tensor"]
    if policy.num_kv_heads % doubled == 0 and mesh.size % doubled == 0:
        advice.append(f"mesh.tensor: {doubled} halves a chip's part of the models")
    if mesh.shape["data"] > 1:
        advice.append("mesh: fsdp in place of data splits the models over these chips as well")
    advice.append(
        f"engine: fewer decode_rows than {sizes.decode_rows}, extend_rows than "
        f"{sizes.extend_rows}, a shorter context than {sizes.context}; or more chips"
    )
    return advice
