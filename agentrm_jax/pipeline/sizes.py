"""Refuses sizes that cannot fit into memory, before anything is allocated.

The estimate is a lower bound: it counts the arrays that exist at the same time whatever the
compiler does. A configuration that passes may still be too large; `agentrm plan` compiles the
programs and gives the exact sizes.
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
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.train_config import TrainConfig
from agentrm_jax.runtime.memory import check_need, smallest_device_bytes
from agentrm_jax.train.fit import FitConfig

Values = Mapping[str, int]

_SHAPE_KEYS = tuple(field.name for field in dataclasses.fields(ModelConfig) if field.type == "int")


def check_sizes(config: RunConfig, mesh: Mesh) -> None:
    """Refuses a run whose arrays cannot fit into the memory of its devices.

    Args:
      config: The run.
      mesh: The devices that train.

    Raises:
      UserError: A size is too large; the message has the largest one that could fit.
    """
    available, shape = smallest_device_bytes(list(mesh.local_devices)), _shape(config)
    model, model_defaults = {}, {}
    if config.policy is None:  # the size of a given policy cannot be changed
        model = {f"model.{name}": shape[name] for name in _SHAPE_KEYS}
        model_defaults = {f"model.{name}": getattr(ModelConfig(), name) for name in _SHAPE_KEYS}
    for name, train in _trained(config).items():
        sizes = {f"{name}.fit.{key}": getattr(train.fit, key) for key in ("batch_size", "length")}
        defaults = {key: getattr(FitConfig(), key.rpartition(".")[2]) for key in sizes}
        needed = _training_bytes(config, train, shape, dict(mesh.shape))
        check_need(needed, sizes | model, defaults | model_defaults, available)
    sizes = {
        f"engine.{name}": size
        for name, size in dataclasses.asdict(config.engine).items()
        if isinstance(size, int) and name not in OTHERS
    }
    defaults = {key: getattr(EngineConfig(), key.rpartition(".")[2]) for key in sizes}
    needed = _engine_bytes(config, shape, dict(mesh.shape))
    check_need(needed, sizes | model, defaults | model_defaults, available)


def _trained(config: RunConfig) -> dict[str, TrainConfig]:
    """The configurations of the training stages of a run, by section."""
    sections: dict[str, TrainConfig] = {}
    if config.trains_policy:
        sections["sft"] = config.sft
    if config.trains_reward:
        sections["train_rm"] = config.train_rm
    if config.trains_implicit:
        sections["train_implicit"] = config.train_implicit
    return sections


def _shape(config: RunConfig) -> dict[str, int]:
    """The numbers of the policy's shape that decide its size."""
    shape: Any = config.model
    if config.policy is not None:
        shape = models.stored_shape(pathlib.Path(config.policy), "policy")
    return {name: getattr(shape, name) for name in _SHAPE_KEYS}


def _parameters(shape: Values) -> int:
    """The number of parameters in the matrices of a model."""
    width, head = shape["d_model"], shape["head_dim"]
    attention = 2 * width * head * (shape["num_heads"] + shape["num_kv_heads"])
    layer = attention + 3 * width * shape["d_ff"]
    return shape["vocab_size"] * width + shape["num_layers"] * layer


def _section(values: Values, prefix: str, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one section without its name in the keys; `otherwise` has missing ones."""
    return {name: values.get(f"{prefix}.{name}", value) for name, value in otherwise.items()}


def _training_bytes(
    config: RunConfig, train: TrainConfig, shape: Values, axes: Values
) -> Callable[[Values], int]:
    """A function from sizes to the least bytes of an update on each device."""
    itemsize = jnp.dtype(config.dtype).itemsize
    moment = jnp.dtype(train.optimizer.moments).itemsize
    # Parameters, gradients and two moments; adapters are small, the frozen parameters are not.
    parameter_bytes = itemsize if train.lora.rank else 4 + 4 + 2 * moment
    shards, row_shards = axes["fsdp"] * axes["tensor"], axes["data"] * axes["fsdp"]

    def needed(values: Values) -> int:
        batch, length = (value for key, value in values.items() if ".fit." in key)
        model = _section(values, "model", shape)
        tokens = max(1, batch // (train.fit.accumulation * row_shards)) * length
        layer_inputs = tokens * model["d_model"] * model["num_layers"] * itemsize
        rows = batch * length * 3 * 4 // row_shards  # tokens, segments, positions
        return _parameters(model) * parameter_bytes // shards + layer_inputs + rows

    return needed


def _engine_bytes(config: RunConfig, shape: Values, axes: Values) -> Callable[[Values], int]:
    """A function from sizes to the least bytes of the policy's engine on each device."""
    itemsize, sizes = jnp.dtype(config.dtype).itemsize, dataclasses.asdict(config.engine)

    def needed(values: Values) -> int:
        model = _section(values, "model", shape)
        engine = _section(values, "engine", sizes)
        cache = least_bytes(model, engine, itemsize, axes["tensor"], axes["data"])
        weight = itemsize if config.engine.weights is None else 1
        return cache + _parameters(model) * weight // (axes["fsdp"] * axes["tensor"])

    return needed
