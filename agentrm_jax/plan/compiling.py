"""Compiles programs for chips that this machine lacks, and records what they need."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache.memory import head_bytes
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import abstract_in_eight_bits
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.plan.hlo import parse
from agentrm_jax.plan.needs import Program
from agentrm_jax.plan.programs import exchanges_of, memory_of
from agentrm_jax.plan.topologies import Topology
from agentrm_jax.plan.traffic import traffic_of
from agentrm_jax.plan.work import NumberBytes

_GPU_OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": 0}
"""Without a GPU nothing can be timed: products take their default tilings."""

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A stage of a run and the chips that it is compiled for.

    Attributes:
      stage: The stage.
      config: The run.
      topology: The chips.
      mesh: The mesh that they form.
      on_compile: Called with stage and program before each compilation.
    """

    stage: str
    config: RunConfig
    topology: Topology
    mesh: Mesh
    on_compile: Callable[[str, str], None]

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the dtype of the run."""
        return jnp.dtype(self.config.dtype).itemsize

    def number(self, shape: LlamaConfig) -> NumberBytes:
        """Returns the bytes of a number of an engine."""
        engine = self.config.engine
        return NumberBytes(
            weights=self.itemsize if engine.weights is None else 1,
            kv=head_bytes(shape.head_dim, self.itemsize, engine.kv) / shape.head_dim,
        )

    def abstract(self, description: parameters.Params) -> parameters.Params:
        """Returns shapes and shardings of parameters in the dtype of the run."""
        return parameters.abstract_of(description, self.config.dtype, self.mesh)

    def abstract_for_scoring(self, description: parameters.Params) -> parameters.Params:
        """Returns shapes and shardings of parameters in the bits that engines hold them in."""
        params = self.abstract(description)
        if self.config.engine.weights is None:
            return params
        if "trunk" in params:
            return {**params, "trunk": abstract_in_eight_bits(params["trunk"])}
        return abstract_in_eight_bits(params)

    def compiled(self, program: Program, lower: Callable[[], jax.stages.Lowered]) -> Program:
        """Returns a program with its memory, collectives and traffic, as compiled.

        Args:
          program: The program, without the numbers that only the compiler knows.
          lower: Lowers it.

        Raises:
          UserError: The compiler refuses the program for another reason than its memory.
        """
        self.on_compile(self.stage, program.name)
        return compiled(program, lower(), self.mesh)


def compiled(program: Program, lowered: jax.stages.Lowered, mesh: Mesh) -> Program:
    """Returns a program with the results of its compilation; see `Target.compiled`."""
    devices = list(mesh.devices.flat)
    on_gpus = devices[0].platform == "gpu"
    began = time.monotonic()
    try:
        executable = lowered.compile(_GPU_OPTIONS if on_gpus else None)
    except Exception as error:  # XLA's error has no public name
        needed = needed_bytes(str(error))
        if needed is None:
            line = next(iter(str(error).splitlines()), "")
            if "cudnn" in line.lower():
                line = "it needs libcudnn: pip install nvidia-cudnn-cu12, or nvidia-cudnn-cu13"
            raise UserError(f"{program.name}: the compiler refuses it ({line[:300]})") from None
        seconds = time.monotonic() - began
        return dataclasses.replace(program, compile_seconds=seconds, needed=needed)
    seconds, text = time.monotonic() - began, parse(executable.as_text() or "")
    return dataclasses.replace(
        program,
        compile_seconds=seconds,
        memory=memory_of(executable),
        exchanges=exchanges_of(text, [device.process_index for device in devices]),
        traffic=traffic_of(text, program.assumed),
        xla_flops=(executable.cost_analysis() or {}).get("flops"),
    )


def needed_bytes(message: str) -> float | None:
    """Returns the bytes that a program would need, from the compiler's out-of-memory message.

    None if the message is not about a chip's memory.
    """
    if "memory" not in message or "hbm" not in message.lower():
        return None
    sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
    return max((float(number) * _UNITS[unit] for number, unit in sizes), default=None)


def bytes_on_chip(tree: Any) -> float:
    """Returns the bytes of a tree's arrays on each chip.

    Args:
      tree: Shapes with shardings.
    """
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )
