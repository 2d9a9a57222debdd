from __future__ import annotations

import importlib.metadata
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from gpu_cases import KINDS, gpus, needs_gpu_compiler
from jax.sharding import NamedSharding, PartitionSpec
from tpu_cases import needs_compiler

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.plan import compilers
from agentrm_jax.plan.chips import CHIPS, GIB, USABLE, GpuTarget
from agentrm_jax.plan.hlo import parse
from agentrm_jax.plan.programs import exchanges_of
from agentrm_jax.plan.topologies import parse_topology
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("v5e:4x4", "v5e", (4, 4)),
        ("v5p:4x4x4", "v5p", (4, 4, 4)),
        ("h200:1", "h200", (1, 1)),
        ("h100:8", "h100", (1, 8)),
        ("h100:4x8", "h100", (4, 8)),
    ],
)
def test_topologies(name, kind, sizes):
    topology = parse_topology(name)
    assert topology.chip is CHIPS[kind]
    assert topology.sizes == sizes


NONE = ["v5p", "v5p:4x4", "v5e:4x4x4", "v9:2x2", "v5e:0x4", "v5e:4*4", "h100:2x2x2", "h300:8"]


@pytest.mark.parametrize("name", NONE)
def test_what_is_none(name):
    with pytest.raises(
        UserError, match=r"^--topology: unknown topology '.*'; .*h200, b200"
    ) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)


def test_a_chip_of_the_users_own(tmp_path):
    file = tmp_path / "h20.yaml"
    file.write_text("like: h100\nmemory_gib: 96\ntflops: 148\nprocessors: 78\n")
    topology = parse_topology(f"{file}:2x8")
    chip = topology.chip
    assert (chip.name, chip.flops, chip.bandwidth) == ("h20", 148e12, CHIPS["h100"].bandwidth)
    assert chip.hbm == USABLE * 96 * GIB
    assert isinstance(chip.target, GpuTarget)
    assert (chip.target.memory, chip.target.processors) == (96 * GIB, 78)
    assert topology.num_chips == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tflops: 1\n", "like"),
        ("like: h101\n", "line 1: like must be one of v5e"),
        ("like: h100\ntflops: -1\n", "line 2: tflops must be above 0"),
        ("like: h100\nflops: 1\n", "flops"),
        ("like: v5e\nprocessors: 3\n", "line 2: processors must be left out: v5e is a TPU"),
        ("like: h100\ncompute_capability: '9'\n", "compute_capability must be two numbers"),
    ],
)
def test_files_of_chips_that_are_refused(tmp_path, text, message):
    file = tmp_path / "chip.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse_topology(f"{file}:8")
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing(capsys):
    assert main(["plan", "configs/tiny.yaml", "--topology", "none.yaml:8"]) == 2
    assert capsys.readouterr().err.count("none.yaml: no such file") == 1


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^the TPU compiler is missing: pip install .*\[tpu\]"):
        parse_topology("v5e:8x8").devices()


def versions(monkeypatch, **found):
    def version(package):
        if package not in found:
            raise importlib.metadata.PackageNotFoundError(package)
        return found[package]

    found = {name.replace("_", "-"): value for name, value in found.items()}
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_without_the_cuda_plugin(monkeypatch):
    versions(monkeypatch, jaxlib="0.10.2")
    with pytest.raises(UserError, match=r"^the GPU compiler is missing: pip .*\[gpu-plan\]'$"):
        parse_topology("h100:7").devices()


def test_a_cuda_plugin_of_another_version(monkeypatch):
    versions(monkeypatch, jaxlib="0.10.2", jax_cuda12_pjrt="0.10.2", jax_cuda12_plugin="0.9.0")
    with pytest.raises(
        UserError,
        match=r"^jax-cuda12-plugin 0.9.0 does not belong to jaxlib 0.10.2: pip install "
        r"'jax-cuda12-plugin==0.10.2'$",
    ):
        parse_topology("h100:7").devices()


def test_half_of_the_cuda_plugin(monkeypatch):
    versions(monkeypatch, jaxlib="0.10.2", jax_cuda13_pjrt="0.10.2")
    with pytest.raises(
        UserError,
        match=r"^jax-cuda13-plugin is missing next to jax-cuda13-pjrt 0.10.2: pip install "
        r"'jax-cuda13-plugin==0.10.2'$",
    ):
        parse_topology("h100:7").devices()


def test_the_description_of_a_gpu_names_its_architecture():
    target = CHIPS["a100"].target
    assert isinstance(target, GpuTarget)
    text = compilers._description(target, 1e12)
    assert 'device_description_str: "sm_80"' in text
    assert "core_count: 108" in text
    assert text.count("{") == text.count("}")


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


@pytest.mark.gpu_compile
@pytest.mark.parametrize("kind", [*KINDS, "l4"])
def test_gpus_of_each_architecture_are_compiled_for(kind):
    device = gpus(kind)[0]
    target = CHIPS[kind].target
    assert isinstance(target, GpuTarget)
    assert device.compute_capability == ".".join(map(str, target.compute_capability))


@pytest.mark.gpu_compile
def test_collectives_between_hosts_cross_the_network():
    """Sums over the GPUs of a host stay within it; sums over all of two hosts do not."""
    needs_gpu_compiler()
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), parse_topology("h100:2x4").devices())
    hosts = [device.process_index for device in mesh.devices.flat]
    assert hosts == [0] * 4 + [1] * 4
    x = jax.ShapeDtypeStruct(
        (8, 1024), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    )

    def summed(axes, x):
        return jax.shard_map(
            lambda x: jax.lax.psum(x, axes), mesh=mesh, in_specs=PartitionSpec(("data", "fsdp")),
            out_specs=PartitionSpec(*(() if "data" in axes else ("data",))), check_vma=False,
        )(x)  # fmt: skip

    for axes, network in ((("fsdp",), 0), (("data", "fsdp"), 2 * 4096 / 4 * 1 / 2)):
        text = jax.jit(summed, static_argnums=0).lower(axes, x).compile().as_text()
        found = exchanges_of(parse(text), hosts)["all-reduce"]
        devices = 8 if "data" in axes else 4
        assert found.bytes == pytest.approx(2 * 4096 * (devices - 1) / devices)
        assert found.network == pytest.approx(network)
