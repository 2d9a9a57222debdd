"""A model as a Hugging Face directory: `config.json`, safetensors and a manifest of checksums.

Each device reads its shard of the weights from the files. One table, `_TENSORS`, holds the name and
the layout of each stored tensor, for reading and for writing.

A reward model is the sequence classifier of its family with one label. Such classifiers have no
bias: a bias that is not zero is stored in a tensor `VALUE_BIAS`, which transformers does not read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.model.stored_tensors import (
    Axes,
    Bounds,
    Stored,
    Tensor,
    check_tensor,
    equal,
    open_tensors,
    write_tensors,
)
from agentrm_jax.runtime.manifests import check_manifest, read_json
from agentrm_jax.runtime.output_folders import new_folder
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

Kind = Literal["policy", "reward"]

VALUE_BIAS = "agentrm_value_bias"
_CONFIG = "config.json"
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = "model.layers.{}."
_MOST_LAYERS = 10_000  # more would be a damaged file
_CLASSES: Mapping[Kind, str] = {"policy": "ForCausalLM", "reward": "ForSequenceClassification"}
"""The end of the names of classes in transformers."""

_TENSORS: Mapping[str, tuple[tuple[str, ...], Axes]] = {
    _EMBED: (("embed",), ((0,), (1,))),
    _LAYER + "input_layernorm.weight": (("layers", "attention_norm"), ((0,),)),
    _LAYER + "self_attn.q_proj.weight": (("layers", "q"), ((0, 1), (2,))),
    _LAYER + "self_attn.k_proj.weight": (("layers", "k"), ((0, 1), (2,))),
    _LAYER + "self_attn.v_proj.weight": (("layers", "v"), ((0, 1), (2,))),
    _LAYER + "self_attn.q_proj.bias": (("layers", "q_bias"), ((0, 1),)),
    _LAYER + "self_attn.k_proj.bias": (("layers", "k_bias"), ((0, 1),)),
    _LAYER + "self_attn.v_proj.bias": (("layers", "v_bias"), ((0, 1),)),
    _LAYER + "self_attn.q_norm.weight": (("layers", "q_norm"), ((0,),)),
    _LAYER + "self_attn.k_norm.weight": (("layers", "k_norm"), ((0,),)),
    _LAYER + "self_attn.o_proj.weight": (("layers", "o"), ((0,), (1, 2))),
    _LAYER + "post_attention_layernorm.weight": (("layers", "mlp_norm"), ((0,),)),
    _LAYER + "mlp.gate_proj.weight": (("layers", "gate"), ((0,), (1,))),
    _LAYER + "mlp.up_proj.weight": (("layers", "up"), ((0,), (1,))),
    _LAYER + "mlp.down_proj.weight": (("layers", "down"), ((0,), (1,))),
    "model.norm.weight": (("final_norm",), ((0,),)),
    _HEAD: (("lm_head",), ((0,), (1,))),
    "score.weight": (("value_head", "kernel"), ((), (0,))),
    VALUE_BIAS: (("value_head", "bias"), ((),)),
}
"""From the name of a stored tensor to the path of our parameter and the layout (of one layer)."""


def load_config(directory: pathlib.Path, kind: Kind = "policy") -> LlamaConfig:
    """Returns the shape of the model in a Hugging Face directory.

    Args:
      directory: The directory.
      kind: `policy` or `reward`.

    Raises:
      UserError: There is no `config.json`, it changed since it was saved, or it is of a model of
        another kind or of an unsupported architecture.
    """
    path = directory / _CONFIG
    contents = read_json(path)
    check_manifest(directory, only=_CONFIG)
    try:
        config = LlamaConfig.from_hf(contents)
        _check_kind(contents.get("architectures"), kind)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def _check_kind(names: Any, kind: Kind) -> None:
    """Refuses a model whose classes in transformers are of another kind.

    A `config.json` without names is one of a policy.
    """
    if not isinstance(names, list | None) or not all(isinstance(n, str) for n in names or ()):
        raise UserError(f"architectures: must be a list of names, not {names!r}")
    kinds = {suffix: found for found, suffix in _CLASSES.items()}
    for name in names or [_CLASSES["policy"]]:
        found = next((found for suffix, found in kinds.items() if name.endswith(suffix)), None)
        if found is None:
            raise UserError(
                f"architectures: {name} is not read; a policy ends in {_CLASSES['policy']}, a "
                f"reward model in {_CLASSES['reward']}"
            )
        if found != kind:
            raise UserError(f"architectures: a {found} model, a {kind} model is wanted")


def load_params(
    directory: pathlib.Path,
    config: LlamaConfig,
    dtype: Any,
    mesh: Mesh | None = None,
    kind: Kind = "policy",
) -> Params:
    """Returns the parameters of a Hugging Face directory; each device reads its own shard.

    Args:
      directory: Holds `model.safetensors`, or the files of `model.safetensors.index.json`.
      config: The shape, from `load_config`.
      dtype: Dtype to which stored values are cast; a value head is float32.
      mesh: The devices; None for the first device.
      kind: `policy` or `reward`.

    Raises:
      UserError: There are no safetensors, a file is damaged, or a tensor is missing, unexpected, of
        another shape, not of a floating-point dtype or not finite.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    if config.num_layers > _MOST_LAYERS:
        raise UserError(
            f"{directory / _CONFIG}: num_hidden_layers: at most {_MOST_LAYERS} are read (got "
            f"{config.num_layers})"
        )
    description = parameters.DESCRIPTIONS[kind](config)
    target = _flat(parameters.abstract_of(description, dtype, mesh))
    check_manifest(directory)
    params: dict[tuple[str, ...], jax.Array] = {}
    with contextlib.ExitStack() as stack:
        stored = open_tensors(directory, stack)
        stack.enter_context(np.errstate(over="ignore"))  # refused below
        if kind == "policy" and config.tie_embeddings and _EMBED not in stored and _HEAD in stored:
            stored[_EMBED] = stored.pop(_HEAD)  # tied weights may be stored under either name
        tensors = _tensors(description)
        bias = _TENSORS[VALUE_BIAS][0]
        if VALUE_BIAS not in stored and tensors.pop(bias, None):
            params[bias] = jax.device_put(jnp.zeros((), target[bias].dtype), target[bias].sharding)
        _check_tensors(directory, stored, tensors, config)
        for path, parts in tensors.items():
            part = functools.partial(_part, stored, parts, dtype=target[path].dtype)
            params[path] = _place(target[path], part)
            _check_finite(params[path], parts, stored)
    return unflatten_dict(params)


@jax.jit
def _finite(values: jax.Array) -> jax.Array:
    return jnp.isfinite(values).all()


def _check_finite(values: jax.Array, parts: Sequence[Tensor], stored: Mapping[str, Stored]) -> None:
    if _finite(values):
        return
    stacked = parts[0].layer is not None
    name = next(p.name for p in parts if not (stacked and _finite(values[p.layer])))
    raise UserError(
        f"{stored[name].file}: {name} holds values that are not finite in {values.dtype}; "
        "download or save the model again"
    )


def save(
    directory: pathlib.Path,
    config: LlamaConfig,
    params: Params,
    *,
    settings: Mapping[str, Any] | None = None,
    add_files: Callable[[pathlib.Path], None] | None = None,
    most_bytes: int = 5_000_000_000,
) -> None:
    """Writes a policy or a reward model as a Hugging Face directory; it appears only when complete.

    Args:
      directory: The directory; if it exists with unchanged contents, it is replaced.
      config: The shape.
      params: The parameters; this process must be able to read all of them.
      settings: Further keys of `config.json`, such as `eos_token_id` and `pad_token_id`.
      add_files: Writes further files, such as the tokenizer's, into the folder of its argument.
      most_bytes: Size of the largest file of weights; as much is held in memory at a time.

    Raises:
      UserError: The folder holds files that agentrm did not write, or cannot be written.
    """
    reward = "value_head" in params
    bias = float(params["value_head"]["bias"]) if reward else 0.0
    contents = {
        **config.to_hf(),
        "torch_dtype": str((params["trunk"] if reward else params)["embed"].dtype),
        "bos_token_id": None,  # without it transformers would take 1, and 2 for the end
        "eos_token_id": None,
        **(_classifier(config, bias) if reward else {}),
        **(settings or {}),
    }
    tensors = _tensors(parameters.DESCRIPTIONS["reward" if reward else "policy"](config))
    if not bias:
        tensors.pop(_TENSORS[VALUE_BIAS][0], None)
    flat = _flat(params)
    with new_folder(directory) as partial:
        (partial / _CONFIG).write_text(json.dumps(contents, indent=1), encoding="utf-8")
        write_tensors(
            partial,
            [(part, flat[path]) for path, parts in tensors.items() for part in parts],
            most_bytes,
        )
        if add_files is not None:
            add_files(partial)


def _classifier(config: LlamaConfig, bias: float) -> dict[str, Any]:
    """Returns the keys of `config.json` of a reward model.

    Without a problem type vLLM would apply a sigmoid or softmax to the scores.
    """
    return {
        "architectures": [config.traits.architecture + _CLASSES["reward"]],
        "num_labels": 1,
        "problem_type": "regression",
        **({VALUE_BIAS: bias} if bias else {}),  # for readers that do not read the tensor
    }


def _tensors(description: Params) -> dict[tuple[str, ...], list[Tensor]]:
    """Returns the stored tensors of each of our parameters, one for each layer if it is stacked."""
    described = _flat(description)
    trunk = ("trunk",) if "trunk" in description else ()
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for name, (within, axes) in _TENSORS.items():
        path = within if within in described else (*trunk, *within)
        if path not in described:
            continue
        shape = described[path].shape
        if name.startswith(_LAYER):
            found[path] = [
                Tensor(name=name.format(l), layer=l, shape=shape[1:], axes=axes)
                for l in range(shape[0])
            ]
        else:
            found[path] = [Tensor(name=name, layer=None, shape=shape, axes=axes)]
    return found


def _place(target: jax.ShapeDtypeStruct, make: Callable[[Bounds], np.ndarray]) -> jax.Array:
    """Returns an array whose shards are made one after another; replicas are made once."""
    sharding: Any = target.sharding
    devices_of: dict[Bounds, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(target.shape).items():
        cuts = zip(index, target.shape, strict=True)
        bounds = tuple(cut.indices(size)[:2] for cut, size in cuts)
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        values = make(bounds)
        # On a CPU an array may use the memory of its numpy array, which is overwritten when the
        # array is donated: replicas must not share it.
        shards += [jax.device_put(values.copy(), device) for device in devices]
        jax.block_until_ready(shards)
    return jax.make_array_from_single_device_arrays(target.shape, sharding, shards)


def _part(
    stored: dict[str, Stored], tensors: Sequence[Tensor], bounds: Bounds, dtype: Any
) -> np.ndarray:
    """Returns a part of a parameter; stacked layers have their bounds first."""
    if tensors[0].layer is None:
        return tensors[0].from_stored(stored[tensors[0].name].values, bounds).astype(dtype)
    (start, stop), *rest = bounds
    out = np.empty([last - first for first, last in bounds], dtype)
    for l in range(start, stop):
        out[l - start] = tensors[l].from_stored(stored[tensors[l].name].values, tuple(rest))
    return out


def _check_tensors(
    directory: pathlib.Path,
    stored: dict[str, Stored],
    tensors: Mapping[tuple[str, ...], Sequence[Tensor]],
    config: LlamaConfig,
) -> None:
    """Refuses tensors that are missing, unexpected or of another shape."""
    wanted = {tensor.name: tensor for parts in tensors.values() for tensor in parts}
    for tensor in wanted.values():
        check_tensor(directory, stored, tensor)
    for name, tensor in stored.items():
        if name in wanted or name.endswith("rotary_emb.inv_freq"):  # a buffer of old versions
            continue
        if name != _HEAD or not config.tie_embeddings:
            raise UserError(
                f"{tensor.file}: {name} is left over: the model of {_CONFIG} has no such tensor"
            )
        if not equal(tensor.values, stored[_EMBED].values):
            raise UserError(
                f"{tensor.file}: {_HEAD} differs from {_EMBED}, but {_CONFIG} says "
                "tie_word_embeddings"
            )


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    return flatten_dict(tree)  # type: ignore[return-value]
