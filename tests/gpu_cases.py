"""The compiler for NVIDIA GPUs without one: it comes with JAX's CUDA plugin."""

from __future__ import annotations

import importlib.util

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from agentrm_jax.plan.topologies import parse_topology

KINDS = ("a100", "h100", "b200")
"""One chip of each architecture: sm_80, sm_90, sm_100."""


def needs_gpu_compiler() -> None:
    """Skips the test where there is no compiler."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("needs the CUDA plugin, which comes with the extra [gpu-plan]")


def gpus(kind: str, number: int = 1) -> list:
    """GPUs of one host to compile for. Skips the test where there is no compiler."""
    needs_gpu_compiler()
    return list(parse_topology(f"{kind}:{number}").devices())


def on_gpu(tree, kind: str):
    """Arrays, or their shapes, as arguments that lie on one GPU."""
    sharding = SingleDeviceSharding(gpus(kind)[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def compile_for_gpu(fn, *arguments, **options):
    """Compiles a function of arguments that lie on GPUs."""
    return jax.jit(fn, **options).lower(*arguments).compile({"xla_gpu_autotune_level": 0})
