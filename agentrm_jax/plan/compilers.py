"""Devices as compilation targets on machines without them: XLA's compilers for TPUs and GPUs.

The compiler for TPUs comes with libtpu, the one for NVIDIA GPUs with JAX's CUDA plugin. Neither
needs its device or its driver.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line
from agentrm_jax.plan.chips import GpuTarget, TpuTarget

_PLUGINS = ("cuda12", "cuda13")
_CUDNN = (9, 8, 0)  # of the program, not of this machine: the compiler asks which it may call


@functools.cache  # a second description would have other device objects
def tpu_devices(name: str, target: TpuTarget, num_chips: int) -> tuple[Any, ...]:
    """Returns the chips of a TPU topology.

    Args:
      name: For example `v5p:2x2x2`.
      target: The kind of TPU.
      num_chips: All chips of the topology.

    Raises:
      UserError: libtpu is missing, or does not support the topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is missing: pip install 'agentrm-jax[tpu]'")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server about this machine
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no process uses a chip
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{target.accelerator}-{num_chips * target.cores}",
    }
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    kind = f"{target.accelerator.replace('litepod', 'e')}:{name.rpartition(':')[2]}"
    try:
        return tuple(topologies.get_topology_desc(kind, "tpu").devices)
    except Exception as error:  # the plugin raises several kinds
        raise _unsupported(name, error) from None


@functools.cache
def gpu_devices(
    name: str, target: GpuTarget, bandwidth: float, hosts: int, gpus: int
) -> tuple[Any, ...]:
    """Returns the GPUs of some hosts, host by host.

    Args:
      name: The chip's name.
      target: The kind of GPU.
      bandwidth: Bytes/s between its memory and the chip.
      hosts: Number of hosts.
      gpus: GPUs of each host.

    Raises:
      UserError: JAX's CUDA plugin is missing, has another version than jaxlib, or refuses the chip.
    """
    _check_plugin()
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it would look for a driver
    from jax.experimental import topologies

    try:
        return tuple(
            topologies.get_topology_desc(
                name,
                "cuda",
                target_config=_description(target, bandwidth),
                topology=f"1x{hosts}x{gpus}",
            ).devices
        )
    except Exception as error:  # the plugin raises several kinds
        raise _unsupported(f"{name}:{hosts}x{gpus}", error) from None


def _unsupported(name: str, error: Exception) -> UserError:
    return UserError(f"--topology: the compiler does not support {name!r} ({first_line(error)})")


def _check_plugin() -> None:
    """Refuses a machine without the plugin, or with one that does not belong to its jaxlib."""
    versions = {}
    for cuda in _PLUGINS:
        for package in (f"jax-{cuda}-pjrt", f"jax-{cuda}-plugin"):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    compilers = [cuda for cuda in _PLUGINS if f"jax-{cuda}-pjrt" in versions]
    if not compilers:
        raise UserError("the GPU compiler is missing: pip install 'agentrm-jax[gpu-plan]'")
    if not any(f"jax-{cuda}-plugin" in versions for cuda in compilers):  # Triton's kernels need it
        plugin, pjrt = (f"jax-{compilers[0]}-{part}" for part in ("plugin", "pjrt"))
        raise UserError(
            f"{plugin} is missing next to {pjrt} {versions[pjrt]}: pip install "
            f"'{plugin}=={versions[pjrt]}'"
        )
    jaxlib = importlib.metadata.version("jaxlib")
    for package, version in versions.items():
        if version != jaxlib:
            raise UserError(
                f"{package} {version} does not belong to jaxlib {jaxlib}: pip install "
                f"'{package}=={jaxlib}'"
            )


def _description(target: GpuTarget, bandwidth: float) -> str:
    """The text proto of a GPU that the compiler takes (`stream_executor.GpuTargetConfigProto`)."""
    major, minor = target.compute_capability
    cudnn = zip(("major", "minor", "patch"), _CUDNN, strict=True)
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": target.processor_memory,
        "threads_per_core_limit": target.processor_threads,
        "core_count": target.processors,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": target.cache,
        "clock_rate_ghz": target.clock_ghz,
        "device_memory_size": target.memory,
        "shared_memory_per_block_optin": target.shared_memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    info = "\n".join(f"  {key}: {value}" for key, value in fields.items())
    version = " ".join(f"{key}: {value}" for key, value in cudnn)
    return (
        f"gpu_device_info {{\n{info}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ {version} }}\n'
        f'device_description_str: "sm_{major}{minor}"\n'
    )
