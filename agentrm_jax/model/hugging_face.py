"""A Llama as a Hugging Face directory: `config.json`, safetensors and a manifest of checksums.

Weights are read from the files straight to the devices where they belong. What a stored tensor is
called and how it lies is written once, in `_TENSORS`, for reading and for writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.sharding import MeshConfig, make_mesh
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.manifest import check_manifest, read_json, write_manifest
from agentrm_jax.model.parameters import Params

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_INDEX = _WEIGHTS + ".index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = "model.layers.{}."

Bounds = tuple[tuple[int, int], ...]
"""First and last + 1 along each axis."""

_TENSORS: Mapping[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
    _EMBED: (("embed",), ((0,), (1,))),
    _LAYER + "input_layernorm.weight": (("layers", "attention_norm"), ((0,),)),
    _LAYER + "self_attn.q_proj.weight": (("layers", "q"), ((1, 2), (0,))),
    _LAYER + "self_attn.k_proj.weight": (("layers", "k"), ((1, 2), (0,))),
    _LAYER + "self_attn.v_proj.weight": (("layers", "v"), ((1, 2), (0,))),
    _LAYER + "self_attn.o_proj.weight": (("layers", "o"), ((2,), (0, 1))),
    _LAYER + "post_attention_layernorm.weight": (("layers", "mlp_norm"), ((0,),)),
    _LAYER + "mlp.gate_proj.weight": (("layers", "gate"), ((1,), (0,))),
    _LAYER + "mlp.up_proj.weight": (("layers", "up"), ((1,), (0,))),
    _LAYER + "mlp.down_proj.weight": (("layers", "down"), ((1,), (0,))),
    "model.norm.weight": (("final_norm",), ((0,),)),
    _HEAD: (("lm_head",), ((1,), (0,))),
}
"""Stored name to our path and layout: for each axis of the stored tensor, which of our axes (of one
layer) it runs over. `((1, 2), (0,))` is our [D, N, H] stored as [N * H, D]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """What a stored tensor holds: one of our parameters, or one layer of it.

    Attributes:
      name: As stored.
      layer: Which layer of a stacked parameter, or None.
      shape: Our shape, of one layer.
      axes: As in `_TENSORS`.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[a] for a in group) for group in self.axes)

    def to_stored(self, values: np.ndarray) -> np.ndarray:
        order = [a for group in self.axes for a in group]
        return np.ascontiguousarray(values.transpose(order).reshape(self.stored_shape))

    def from_stored(self, stored: Any, bounds: Bounds) -> np.ndarray:
        """The part of our values between the bounds, reading no more than it must."""
        read, dims, order = [], [], []
        within = [slice(None)] * len(self.shape)
        for first, *rest in self.axes:  # where axes are merged, the outermost one can be cut
            inner = math.prod(self.shape[a] for a in rest)
            start, stop = bounds[first]
            read.append(slice(start * inner, stop * inner))
            dims += [stop - start, *(self.shape[a] for a in rest)]
            order += [first, *rest]
            for a in rest:
                within[a] = slice(*bounds[a])
        values = np.asarray(stored[tuple(read)]).reshape(dims)
        return values.transpose(np.argsort(order))[tuple(within)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """A tensor in an open file; indexing `values` reads only what is asked for."""

    file: pathlib.Path
    values: Any


def load_config(directory: pathlib.Path) -> LlamaConfig:
    """The shape of the model in a Hugging Face directory.

    Raises:
      UserError: There is no `config.json`, it changed since it was saved, or is not a Llama's.
    """
    path = directory / _CONFIG
    contents = read_json(path)
    check_manifest(directory, only=_CONFIG)
    try:
        return LlamaConfig.from_hf(contents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_params(
    directory: pathlib.Path, config: LlamaConfig, dtype: Any, mesh: Mesh | None = None
) -> Params:
    """The parameters, each device's part read from the files to where it belongs.

    Args:
      directory: Holds `model.safetensors`, or the files of `model.safetensors.index.json`.
      config: As `load_config` gives it.
      dtype: What the stored values are cast to.
      mesh: None stands for the first device.

    Raises:
      UserError: No safetensors there, a damaged file, or a tensor that is missing, left over, of
        another shape or no floating-point number.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    target = _flat(parameters.abstract(config, dtype, mesh))
    check_manifest(directory)
    params: dict[tuple[str, ...], jax.Array] = {}
    with contextlib.ExitStack() as stack:
        stored = _open(directory, stack)
        _check_tensors(directory, stored, config)
        for path, tensors in _tensors(config).items():
            part = functools.partial(_part, stored, tensors, dtype=target[path].dtype)
            params[path] = _place(target[path], part)
    return unflatten_dict(params)


def save(
    directory: pathlib.Path,
    config: LlamaConfig,
    params: Params,
    *,
    settings: Mapping[str, Any] | None = None,
    beside: Callable[[pathlib.Path], None] | None = None,
    most_bytes: int = 5_000_000_000,
) -> None:
    """Writes a policy as a Hugging Face directory; it appears in one piece or not at all.

    Args:
      directory: One that is there already is replaced.
      params: All of them within reach of this process.
      settings: More keys of `config.json`, such as `eos_token_id` and `pad_token_id`.
      beside: Writes further files, such as the tokenizer's, into the folder that it is handed.
      most_bytes: Largest file of weights, and what is held in memory at once.
    """
    directory = directory.absolute()
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contents = {
        **config.to_hf(),
        "torch_dtype": str(params["embed"].dtype),  # newer versions read it as `dtype`
        "bos_token_id": None,  # without it transformers would take 1, and 2 for the end
        "eos_token_id": None,
        **(settings or {}),
    }
    (partial / _CONFIG).write_text(json.dumps(contents, indent=1), encoding="utf-8")
    _write_weights(partial, config, params, most_bytes)
    if beside is not None:
        beside(partial)
    write_manifest(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _tensors(config: LlamaConfig) -> dict[tuple[str, ...], list[_Tensor]]:
    """The stored tensors of each of our parameters, one for each layer where they are stacked."""
    description = _flat(parameters.describe(config))
    found: dict[tuple[str, ...], list[_Tensor]] = {}
    for name, (path, axes) in _TENSORS.items():
        if path not in description:  # tied embeddings have no head
            continue
        shape = description[path].shape
        if name.startswith(_LAYER):
            found[path] = [
                _Tensor(name=name.format(l), layer=l, shape=shape[1:], axes=axes)
                for l in range(shape[0])
            ]
        else:
            found[path] = [_Tensor(name=name, layer=None, shape=shape, axes=axes)]
    return found


def _place(target: jax.ShapeDtypeStruct, make: Callable[[Bounds], np.ndarray]) -> jax.Array:
    """An array from its parts, made one after another; replicas are made once."""
    sharding: Any = target.sharding
    devices_of: dict[Bounds, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(target.shape).items():
        cuts = zip(index, target.shape, strict=True)
        bounds = tuple(cut.indices(size)[:2] for cut, size in cuts)
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        values = make(bounds)
        # On a CPU an array may live in the memory it is made of, and is overwritten there once it
        # is donated: replicas must not share it.
        shards += [jax.device_put(values.copy(), device) for device in devices]
        jax.block_until_ready(shards)
    return jax.make_array_from_single_device_arrays(target.shape, sharding, shards)


def _part(
    stored: dict[str, _Stored], tensors: Sequence[_Tensor], bounds: Bounds, dtype: Any
) -> np.ndarray:
    """A part of one of our parameters; where layers are stacked, the bounds begin with theirs."""
    if tensors[0].layer is None:
        return tensors[0].from_stored(stored[tensors[0].name].values, bounds).astype(dtype)
    (start, stop), *rest = bounds
    out = np.empty([last - first for first, last in bounds], dtype)
    for l in range(start, stop):
        out[l - start] = tensors[l].from_stored(stored[tensors[l].name].values, tuple(rest))
    return out


def _open(directory: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, _Stored]:
    """The tensors of a directory by name; nothing is read yet."""
    listed: dict[str, str] | None = None
    if (directory / _WEIGHTS).exists():
        names = [_WEIGHTS]
    elif (directory / _INDEX).exists():
        listed = _read_index(directory / _INDEX)
        names = sorted(set(listed.values()))
    else:
        raise UserError(
            f"{directory}: neither {_WEIGHTS} nor {_INDEX} is here; weights of another format "
            "have to be saved as safetensors first"
        )
    found: dict[str, _Stored] = {}
    for name in names:
        path = directory / name
        if not path.exists():
            raise UserError(f"{directory / _INDEX}: names the file {name}, which is not there")
        try:
            file = stack.enter_context(safetensors.safe_open(str(path), "np"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                found[key] = _Stored(file=path, values=file.get_slice(key))
        except (safetensors.SafetensorError, OSError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise UserError(f"{path}: not a safetensors file that can be read ({line})") from None
    for key, name in (listed or {}).items():
        if key not in found or found[key].file.name != name:
            raise UserError(f"{directory / _INDEX}: {key} is not in the file {name}")
    return found


def _read_index(path: pathlib.Path) -> dict[str, str]:
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: weight_map: missing")
    for key, name in listed.items():
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise UserError(f"{path}: weight_map: {key} is in {name!r}, which is no file name")
    return listed


def _check_tensors(
    directory: pathlib.Path, stored: dict[str, _Stored], config: LlamaConfig
) -> None:
    """Compares what is stored with what the config wants; nothing may be missing or left over."""
    wanted = {tensor.name: tensor for parts in _tensors(config).values() for tensor in parts}
    for name, tensor in wanted.items():
        if name not in stored:
            raise UserError(f"{directory}: the tensor {name} is missing from its safetensors")
        file, values = stored[name].file, stored[name].values
        shape = tuple(values.get_shape())
        if shape != tensor.stored_shape:
            raise UserError(
                f"{file}: {name} has shape {shape}, {_CONFIG} wants {tensor.stored_shape}"
            )
        if values.get_dtype() not in _FLOATS:
            raise UserError(
                f"{file}: {name} is stored as {values.get_dtype()}, only {', '.join(_FLOATS)} "
                "are read"
            )
    for name, tensor in stored.items():
        if name in wanted or name.endswith("rotary_emb.inv_freq"):  # a buffer of old versions
            continue
        if name != _HEAD:
            raise UserError(f"{tensor.file}: {name} is left over, {_CONFIG} knows no such tensor")
        if not _equal(tensor.values, stored[_EMBED].values):
            raise UserError(
                f"{tensor.file}: {_HEAD} differs from {_EMBED}, but {_CONFIG} says "
                "tie_word_embeddings"
            )


def _equal(a: Any, b: Any, rows: int = 4096) -> bool:
    """Whether two stored matrices are the same, a few rows at a time."""
    if a.get_shape() != b.get_shape():
        return False
    total = a.get_shape()[0]
    cuts = (slice(start, min(start + rows, total)) for start in range(0, total, rows))
    return all(np.array_equal(a[cut], b[cut]) for cut in cuts)


def _write_weights(
    directory: pathlib.Path, config: LlamaConfig, params: Params, most_bytes: int
) -> None:
    """One file, or several and their index, filled one after another."""
    flat = _flat(params)
    files: list[list[tuple[_Tensor, Any]]] = [[]]
    size = total = 0
    for path, tensors in _tensors(config).items():
        for tensor in tensors:
            count = math.prod(tensor.shape) * flat[path].dtype.itemsize
            if files[-1] and size + count > most_bytes:
                files.append([])
                size = 0
            files[-1].append((tensor, flat[path]))
            size, total = size + count, total + count
    listed: dict[str, str] = {}
    for number, contents in enumerate(files, start=1):
        name = _WEIGHTS if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        values = {
            tensor.name: tensor.to_stored(
                np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
            )
            for tensor, leaf in contents
        }
        safetensors.numpy.save_file(values, directory / name, {"format": "pt"})
        shutil.copymode(directory / _CONFIG, directory / name)  # it comes readable by us alone
        listed.update(dict.fromkeys(values, name))
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (directory / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    return flatten_dict(tree)  # type: ignore[return-value]
