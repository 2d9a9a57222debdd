"""What a stage needs of TPUs, and what to change where they have too little."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.plan.chips import Topology
from agentrm_jax.plan.programs import Exchange, Memory
from agentrm_jax.plan.work import Work, kv_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program.

    Attributes:
      name: What it does.
      unit: What `least` counts: an update, a token of every row, a call.
      work: Least work for a unit on each chip.
      model_flops: Of a unit, on all chips, without what is computed anew to save memory.
      compile_seconds: How long the compiler took.
      handed: Bytes that it is handed and that lie on the chip anyway.
      memory: What it needs in all; None where it does not fit.
      needed: What the compiler says that it would need in all, where it does not fit.
      exchanges: Collectives by kind. For decoding, those of one token.
      xla_flops: XLA's own count for each chip, which takes loops once.
    """

    name: str
    unit: str
    work: Work
    model_flops: float
    compile_seconds: float
    handed: float
    memory: Memory | None = None
    needed: float | None = None
    exchanges: Mapping[str, Exchange] = dataclasses.field(default_factory=dict)
    xla_flops: float | None = None

    def least_seconds(self, topology: Topology) -> dict[str, float]:
        """What a unit takes at least, by what bounds it: the chip's arithmetic, its memory, and its
        links to other chips."""
        chip = topology.chip
        return {
            "arithmetic": self.work.flops / chip.flops,
            "memory": self.work.bytes / chip.bandwidth,
            "links": sum(e.bytes for e in self.exchanges.values()) / chip.links,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What a stage needs of each chip.

    Attributes:
      name: Of the stage.
      resident: Bytes that lie there throughout, by what they are.
      programs: Its programs; what they are handed is resident, or small.
      hbm: Bytes that a chip has.
      advice: What to change where it does not fit.
    """

    name: str
    resident: Mapping[str, float]
    programs: Sequence[Program]
    hbm: float
    advice: Sequence[str]

    @property
    def peak(self) -> float:
        """What lies there, and what the greediest program needs besides."""
        besides = [
            (p.memory.total if p.memory else p.needed or math.inf) - p.handed for p in self.programs
        ]
        return sum(self.resident.values()) + max(besides)

    @property
    def fits(self) -> bool:
        return all(p.memory is not None for p in self.programs) and self.peak <= self.hbm


def training_advice(config: RunConfig, mesh: Mesh, found: StagePlan) -> list[str]:
    """What would save memory, the cheapest first; nothing where it fits."""
    if found.fits:
        return []
    key, train = {
        "sft": ("sft", config.sft),
        "train-rm": ("train_rm", config.train_rm),
        "train-implicit": ("train_implicit", config.train_implicit),
    }[found.name]
    fit = train.fit
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    advice = []
    if fit.attention == "xla":
        advice.append(f"{key}.fit.attention: pallas keeps no scores in memory")
    if getattr(train, "vocab_chunks", 0) == 1:
        advice.append(f"{key}.vocab_chunks: 6 (say) makes the logits of parts of the vocabulary")
    if config.dtype == "float32":
        advice.append("dtype: bfloat16 halves activations")
    if fit.remat != "block":
        advice.append(f"{key}.fit.remat: block keeps no layer's insides (a third more arithmetic)")
    if (rows := fit.batch_size // fit.accumulation // ways) > 1:
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
        f"{sum(found.resident.values()) / 2**30:.1f} GiB of each"
    )
    return advice


def answering_advice(
    config: RunConfig, mesh: Mesh, policy: LlamaConfig, found: StagePlan
) -> list[str]:
    if found.fits:
        return []
    advice = []
    sizes, over = config.engine, found.peak - found.hbm
    token = kv_bytes(policy, 1, jnp.dtype(config.dtype).itemsize) / mesh.shape["tensor"]
    if config.dtype == "float32":
        advice.append("dtype: bfloat16 halves parameters and pages")
    pages = sum(size for name, size in found.resident.items() if "pages" in name)
    if pages > over:
        fewer = math.ceil(over / token)
        advice.append(f"engine.cache_tokens: about {fewer:,} fewer for each of its engines")
    twice = 2 * mesh.shape["tensor"]
    if policy.num_kv_heads % twice == 0 and mesh.size % twice == 0:
        advice.append(f"mesh.tensor: {twice} halves a chip's part of the models")
    if mesh.shape["data"] > 1:
        advice.append("mesh: fsdp in place of data splits the models over these chips as well")
    advice.append(
        f"engine: fewer decode_rows than {sizes.decode_rows}, extend_rows than "
        f"{sizes.extend_rows}, a shorter context than {sizes.context}; or more chips"
    )
    return advice
