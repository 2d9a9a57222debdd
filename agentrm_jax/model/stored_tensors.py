"""Finds, checks, reads in part and writes single tensors of safetensors files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.runtime.manifests import read_json

_WEIGHTS = "model.safetensors"
_INDEX = _WEIGHTS + ".index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")

Bounds = tuple[tuple[int, int], ...]
"""The first index and the last index + 1 along each axis."""

Axes = tuple[tuple[int, ...], ...]
"""For each axis of a stored tensor, the axes of our parameter that are merged in it.

`((0, 1), (2,))` is our [N, H, D] stored as [N * H, D]; `((), (0,))` is our [D] stored as [1, D]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """The description of a stored tensor, which holds a parameter or one layer of it.

    Attributes:
      name: Name of the stored tensor.
      layer: The layer of a stacked parameter; None if it is not stacked.
      shape: Shape of our parameter, of one layer.
      axes: The layout of the stored tensor.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]
    axes: Axes

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        return tuple(math.prod(self.shape[a] for a in group) for group in self.axes)

    def to_stored(self, values: np.ndarray) -> np.ndarray:
        """Returns our values in the layout of the stored tensor."""
        order = [a for group in self.axes for a in group]
        return np.ascontiguousarray(values.transpose(order).reshape(self.stored_shape))

    def from_stored(self, stored: Any, bounds: Bounds) -> np.ndarray:
        """Returns our values within bounds; reads only the slice that holds them."""
        read, dims, order = [], [], []
        within = [slice(None)] * len(self.shape)
        for group in self.axes:
            if not group:
                read.append(slice(None))
                continue
            first, *rest = group  # of merged axes only the outermost one can be sliced
            inner = math.prod(self.shape[a] for a in rest)
            start, stop = bounds[first]
            read.append(slice(start * inner, stop * inner))
            dims += [stop - start, *(self.shape[a] for a in rest)]
            order += [first, *rest]
            for a in rest:
                within[a] = slice(*bounds[a])
        values = np.asarray(stored[tuple(read)]).reshape(dims)
        return np.asarray(values.transpose(np.argsort(order))[tuple(within)])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor in an open file; indexing `values` reads only the slice."""

    file: pathlib.Path
    values: Any


def open_tensors(directory: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Returns the tensors of a directory by name, without reading their values.

    Args:
      directory: The directory.
      stack: Keeps the files open until it is closed.

    Raises:
      UserError: There are no safetensors, a file is damaged, or the index does not match the files.
    """
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
    found: dict[str, Stored] = {}
    for name in names:
        path = directory / name
        if not path.exists():
            raise UserError(f"{directory / _INDEX}: names the file {name}, which is not there")
        try:
            file = stack.enter_context(safetensors.safe_open(str(path), "np"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                found[key] = Stored(file=path, values=file.get_slice(key))
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: not a safetensors file that can be read ({first_line(error)})"
            ) from None
    for key, name in (listed or {}).items():
        if key not in found or found[key].file.name != name:
            raise UserError(f"{directory / _INDEX}: {key} is not in the file {name}")
    return found


def _read_index(path: pathlib.Path) -> dict[str, str]:
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: weight_map: missing")
    for key, name in listed.items():
        if not isinstance(name, str) or not _is_file_name(name):
            raise UserError(
                f"{path}: weight_map: {printable(key)} is in {name!r:.80}, which is not the name "
                "of a safetensors file in the same folder"
            )
    return listed


def _is_file_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and pathlib.PurePath(name).name == name
        and len(os.fsencode(name)) < 256
    )


def check_tensor(directory: pathlib.Path, found: dict[str, Stored], tensor: Tensor) -> None:
    """Refuses a stored tensor that does not match its description.

    Args:
      directory: The directory, for the message.
      found: The stored tensors by name.
      tensor: The description.

    Raises:
      UserError: The tensor is missing, of another shape or not of a floating-point dtype.
    """
    if tensor.name not in found:
        raise UserError(f"{directory}: the tensor {tensor.name} is missing from its safetensors")
    file, values = found[tensor.name].file, found[tensor.name].values
    shape = tuple(values.get_shape())
    if shape != tensor.stored_shape:
        raise UserError(
            f"{file}: {tensor.name} has shape {shape}, config.json requires {tensor.stored_shape}"
        )
    if values.get_dtype() not in _FLOATS:
        raise UserError(
            f"{file}: {tensor.name} is stored as {values.get_dtype()}, only {', '.join(_FLOATS)} "
            "are read"
        )


def equal(a: Any, b: Any, rows: int = 4096) -> bool:
    """Returns whether two stored matrices are equal; compares a few rows at a time."""
    if a.get_shape() != b.get_shape():
        return False
    total = a.get_shape()[0]
    cuts = (slice(start, min(start + rows, total)) for start in range(0, total, rows))
    return all(np.array_equal(a[cut], b[cut]) for cut in cuts)


def write_tensors(
    directory: pathlib.Path, contents: Sequence[tuple[Tensor, Any]], most_bytes: int
) -> None:
    """Writes tensors to one file, or to several files with an index.

    Args:
      directory: The directory; must hold `config.json` already.
      contents: Descriptions of tensors, each with the parameter that holds its values.
      most_bytes: Size of the largest file.
    """
    files: list[list[tuple[Tensor, Any]]] = [[]]
    size = total = 0
    for tensor, leaf in contents:
        count = math.prod(tensor.shape) * leaf.dtype.itemsize
        if files[-1] and size + count > most_bytes:
            files.append([])
            size = 0
        files[-1].append((tensor, leaf))
        size, total = size + count, total + count
    listed: dict[str, str] = {}
    for number, held in enumerate(files, start=1):
        name = _WEIGHTS if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        values = {
            tensor.name: tensor.to_stored(
                np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
            )
            for tensor, leaf in held
        }
        try:
            safetensors.numpy.save_file(values, directory / name, {"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk
            raise OSError(first_line(error)) from None
        # safetensors makes files that only their owner can read.
        shutil.copymode(directory / "config.json", directory / name)
        listed.update(dict.fromkeys(values, name))
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (directory / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
