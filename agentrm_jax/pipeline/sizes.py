"""Refuses sizes that cannot fit into memory, before anything is allocated.

What is reckoned is less than what is needed: arrays that exist at the same time whatever the
compiler does. A configuration that passes may still be too large; `agentrm plan` compiles the
programs and knows.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.engine.cache.memory import OTHERS, least_bytes
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.config import ModelConfig, RunConfig, TrainConfig
from agentrm_jax.runtime.memory import check_need, smallest_device_bytes
from agentrm_jax.train.fit import FitConfig

Values = Mapping[str, int]

_SHAPE = tuple(field.name for field in dataclasses.fields(ModelConfig) if field.type == "int")


def check_sizes(config: RunConfig, mesh: Mesh) -> None:
    """Refuses a run whose arrays cannot fit into the memory of its devices.

    Args:
      config: The run.
      mesh: The devices that train.

    Raises:
      UserError: Names the size that is too large and the largest one that could fit.
    """
    have, shape = smallest_device_bytes(list(mesh.local_devices)), _shape(config)
    model, usual = {}, {}
    if config.policy is None:  # a given policy has its own size
        model = {f"model.{name}": shape[name] for name in _SHAPE}
        usual = {f"model.{name}": getattr(ModelConfig(), name) for name in _SHAPE}
    for name, train in _trained(config).items():
        own = {f"{name}.fit.{key}": getattr(train.fit, key) for key in ("batch_size", "length")}
        by_default = {key: getattr(FitConfig(), key.rpartition(".")[2]) for key in own}
        need = _training_bytes(config, train, shape, dict(mesh.shape))
        check_need(need, own | model, by_default | usual, have)
    sizes = dataclasses.asdict(config.engine)
    own = {
        f"engine.{name}": size
        for name, size in sizes.items()
        if isinstance(size, int) and name not in OTHERS
    }
    by_default = {key: getattr(EngineConfig(), key.rpartition(".")[2]) for key in own}
    need = _engine_bytes(config, shape, dict(mesh.shape))
    check_need(need, own | model, by_default | usual, have)


def _trained(config: RunConfig) -> dict[str, TrainConfig]:
    found: dict[str, TrainConfig] = {}
    if config.train_policy:
        found["sft"] = config.sft
    if config.trains_reward:
        found["train_rm"] = config.train_rm
    if config.trains_implicit:
        found["train_implicit"] = config.train_implicit
    return found


def _shape(config: RunConfig) -> dict[str, int]:
    """The numbers of the policy's shape that decide its size."""
    shape: Any = config.model
    if config.policy is not None:
        shape = models.stored_shape(pathlib.Path(config.policy), "policy")
    return {name: getattr(shape, name) for name in _SHAPE}


def _parameters(shape: Values) -> int:
    """Numbers in the matrices of a model."""
    width, head = shape["d_model"], shape["head_dim"]
    attention = 2 * width * head * (shape["num_heads"] + shape["num_kv_heads"])
    layer = attention + 3 * width * shape["d_ff"]
    return shape["vocab_size"] * width + shape["num_layers"] * layer


def _tried(values: Values, prefix: str, usual: Values) -> dict[str, int]:
    """The values of one section, by their names in it."""
    return {name: values.get(f"{prefix}.{name}", value) for name, value in usual.items()}


def _training_bytes(
    config: RunConfig, train: TrainConfig, shape: Values, ways: Values
) -> Callable[[Values], int]:
    """From sizes to the bytes that an update needs on each device, at least."""
    number = jnp.dtype(config.dtype).itemsize
    moment = jnp.dtype(train.optimizer.moments).itemsize
    each = number if train.lora.rank else 4 + 4 + 2 * moment  # parameters, gradients, moments
    split, rows = ways["fsdp"] * ways["tensor"], ways["data"] * ways["fsdp"]

    def need(values: Values) -> int:
        batch, length = (v for key, v in values.items() if ".fit." in key)
        tried = _tried(values, "model", shape)
        tokens = max(1, batch // (train.fit.accumulation * rows)) * length
        kept = tokens * tried["d_model"] * tried["num_layers"] * number  # each layer's input
        read = batch * length * 3 * 4 // rows  # tokens, segments, positions
        return _parameters(tried) * each // split + kept + read

    return need


def _engine_bytes(config: RunConfig, shape: Values, ways: Values) -> Callable[[Values], int]:
    """From sizes to the bytes that the policy's engine needs on each device, at least."""
    number, sizes = jnp.dtype(config.dtype).itemsize, dataclasses.asdict(config.engine)

    def need(values: Values) -> int:
        tried = _tried(values, "model", shape)
        engine = _tried(values, "engine", sizes)
        own = least_bytes(tried, engine, number, ways["tensor"], ways["data"])
        return own + _parameters(tried) * number // (ways["fsdp"] * ways["tensor"])

    return need
