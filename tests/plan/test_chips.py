from __future__ import annotations

import importlib.util

import pytest
from tpu_cases import needs_compiler

from agentrm_jax.core.errors import UserError
from agentrm_jax.plan.chips import CHIPS, parse_topology
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("name", "kind", "chips"), [("v5e:4x4", "v5e", 16), ("v5p:4x4x4", "v5p", 64)]
)
def test_topologies(name, kind, chips):
    topology = parse_topology(name)
    assert topology.chip is CHIPS[kind]
    assert topology.num_chips == chips


@pytest.mark.parametrize("name", ["v5p", "v5p:4x4", "v5e:4x4x4", "v9:2x2", "v5e:0x4", "v5e:4*4"])
def test_what_is_none(name):
    with pytest.raises(
        UserError, match=r"^--topology: unknown topology '.*'; .*v5p:4x4x4"
    ) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^the TPU compiler is missing: pip install .*\[tpu\]"):
        parse_topology("v5e:2x2").devices()


@pytest.mark.tpu_compile
def test_meshes_are_laid_over_the_torus():
    needs_compiler()
    devices = parse_topology("v6e:4x4").devices()
    mesh = make_mesh(MeshConfig(data=2, tensor=8), devices)  # splits an axis of the torus
    assert len(set(mesh.devices.flat)) == 16
    with pytest.raises(UserError, match=r"^mesh data=1 fsdp=3 tensor=1 cannot be laid"):
        make_mesh(MeshConfig(fsdp=3), devices)


@pytest.mark.tpu_compile
def test_a_topology_that_the_compiler_does_not_know():
    needs_compiler()
    with pytest.raises(UserError, match=r"^--topology: the compiler does not support 'v5e:3x5'"):
        parse_topology("v5e:3x5").devices()
    assert len(parse_topology("v5e:2x4").devices()) == 8
