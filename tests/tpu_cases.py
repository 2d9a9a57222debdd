"""The TPU compiler without a TPU: it comes with libtpu and knows every kind of chip by its name."""

from __future__ import annotations

import functools
import importlib.util
import os

import jax
import pytest
from jax.sharding import SingleDeviceSharding

TOPOLOGIES = {
    "v4": ("v4:2x2x1", "v4-8"),
    "v5e": ("v5e:2x2", "v5litepod-4"),
    "v5p": ("v5p:2x2x1", "v5p-8"),
    "v6e": ("v6e:2x2", "v6e-4"),
}


def needs_compiler() -> None:
    """Skips the test where there is no compiler."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which comes with the extra [tpu]")


def tpu_devices(kind: str) -> list:
    """Four chips or more to compile for. Skips the test where there is no compiler."""
    needs_compiler()
    return _devices(kind)


@functools.cache  # chips that were named twice are not the same
def _devices(kind: str) -> list:
    from jax.experimental import topologies

    name, accelerator = TOPOLOGIES[kind]
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody takes a chip
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": accelerator,
    }
    return list(topologies.get_topology_desc(name, "tpu").devices)


def abstract(tree, kind: str):
    """Arrays, or their shapes, as arguments that lie on one chip."""
    sharding = SingleDeviceSharding(tpu_devices(kind)[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def num_kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')
