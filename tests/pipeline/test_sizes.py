"""Sizes beyond memory are refused by key before anything is allocated."""

from __future__ import annotations

import dataclasses
import pathlib

import jax.numpy as jnp
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache import memory as engine_memory
from agentrm_jax.engine.cache.memory import check_memory
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.pipeline import fit_model, sizes
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.sizes import check_sizes
from agentrm_jax.runtime import memory
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

TINY = pathlib.Path(__file__).parents[2] / "configs" / "tiny.yaml"
GIB = 2**30
ENGINE = (
    "context", "decode_rows", "decode_tokens", "extend_rows", "extend_tokens", "extend_batch",
    "cache_tokens", "max_segments", "instruction_tokens",
)  # fmt: skip
KEYS = (
    *(f"engine.{name}" for name in ENGINE),
    *(f"model.{name}" for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff")),
    *(f"{stage}.fit.{key}" for stage in ("sft", "train_rm") for key in ("batch_size", "length")),
)


@pytest.fixture
def mesh(monkeypatch):
    """One device of 8 GiB."""
    monkeypatch.setattr(sizes, "smallest_device_bytes", lambda devices: 8 * GIB)
    return make_mesh(MeshConfig())


@pytest.mark.parametrize("key", KEYS)
def test_a_size_beyond_memory_is_named_with_the_largest_that_fits(mesh, key: str) -> None:
    huge = 2**30
    with pytest.raises(UserError) as error:
        check_sizes(load_config(TINY, [f"--{key}={huge}"]), mesh)
    message = str(error.value)
    assert message.startswith(f"{key} must be at most ")
    assert message.endswith("GiB at least are needed, a device has 8.0 GiB")
    most = int(message.removeprefix(f"{key} must be at most ").partition(" ")[0].replace(",", ""))
    rounded = most // 64 * 64  # of which the page size and its multiples are divisors
    assert 0 < rounded < huge
    if not key.startswith("model."):  # several stages limit those
        check_sizes(load_config(TINY, [f"--{key}={rounded}"]), mesh)


def test_cache_tokens_are_reckoned_to_the_byte(mesh) -> None:
    """2 layers of 1 head of 32 float32 numbers, keys and values: 512 bytes a token and layer."""
    shape = LlamaConfig(
        vocab_size=64, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32, d_ff=48,
        tie_embeddings=True,
    )  # fmt: skip
    usual = EngineConfig()
    fixed = (
        engine_memory.least_bytes(dataclasses.asdict(shape), dataclasses.asdict(usual), 4, 1, 1)
        - 4096 * 512
    )
    have = memory.smallest_device_bytes(mesh.local_devices[:1])
    most = (have - fixed) // 512
    check_memory(shape, EngineConfig(cache_tokens=most), jnp.float32, None)
    with pytest.raises(UserError, match=rf"^engine\.cache_tokens must be at most {most:,} \(got "):
        check_memory(shape, EngineConfig(cache_tokens=most + 1), jnp.float32, None)


def test_a_model_that_no_batch_makes_fit_says_what_to_do(mesh) -> None:
    config = load_config(TINY, ["--model.d_model=65536", "--model.num_layers=2", "--model.d_ff=9"])
    config = dataclasses.replace(config, policy="given", train_policy=True)
    need = sizes._training_bytes(config, config.sft, dataclasses.asdict(config.model), mesh.shape)
    fit = {"sft.fit.batch_size": 4, "sft.fit.length": 64}
    with pytest.raises(
        UserError, match=r"^sft does not fit: .* GiB at least .*; take more devices \(mesh.fsdp"
    ):
        memory.check_need(need, fit, fit, GIB // 64)


def test_an_opening_longer_than_rows_names_the_key_of_its_stage() -> None:
    def sequences(examples):
        raise UserError("must be at least 9", field="length", value=8)

    for section in ("sft", "train_rm", "train_implicit"):
        with pytest.raises(
            UserError, match=rf"^{section}\.fit\.length must be at least 9 \(got 8\)$"
        ):
            fit_model.training_rows(sequences, [], str, section, load_config(TINY))


def test_a_container_limits_the_host(tmp_path, monkeypatch) -> None:
    whole = memory.host_bytes()
    for text, expected in (("max", None), ("1048576\n", 1 << 20), ("9" * 19, None)):
        path = tmp_path / "memory.max"
        path.write_text(text)
        monkeypatch.setattr(memory, "_LIMITS", (path, tmp_path / "absent"))
        assert memory.host_bytes() == (expected or memory.host_bytes())
    assert whole > 0
    assert memory.in_gib(3 * GIB) == "3.0 GiB"
    assert memory.in_gib(2**20) == "1.0 MiB"


def test_every_shipped_configuration_for_one_machine_passes() -> None:
    for name in ("tiny", "quickstart"):
        check_sizes(load_config(TINY.with_name(f"{name}.yaml")), make_mesh(MeshConfig()))
