"""Reads the container format GGUF: metadata and tensors, with all lengths checked.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1",
            10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_ALIGNMENT = "general.alignment"
_PLAIN = {0: "<f4", 1: "<f2"}  # float types by their number

TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""The supported types by number; tests compare their values with those of llama.cpp."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """A tensor in a file.

    Attributes:
      name: The name.
      kind: Number of the type, a key of `TYPES`.
      shape: The shape, outermost axis first, as in numpy.
      data: The bytes, uint8.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: np.ndarray

    def values(self) -> np.ndarray:
        """Returns the values as float32; quantised ones are expanded as llama.cpp does.

        Raises:
          UserError: A value is not finite.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        if self.kind in _PLAIN:
            values = self.data.view(_PLAIN[self.kind]).astype(np.float32)
        else:
            rows = self.data.reshape(math.prod(self.shape[:-1]), -1)
            with np.errstate(all="ignore"):  # what is not finite is refused below
                values = dequantize(rows, GGMLQuantizationType(self.kind))
        if not np.isfinite(values).all():
            raise UserError(f"tensor {self.name}: holds values that are not finite")
        return values.reshape(self.shape)


def read_gguf_file(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Returns the metadata and the tensors of a file by name; tensors are mapped, not read.

    Raises:
      UserError: The file is not a GGUF file of a supported version, ends early, or holds an invalid
        key or tensor.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (OSError, ValueError) as error:  # a folder, or an empty file
        raise UserError(f"{path}: not a GGUF file that can be read ({first_line(error)})") from None
    try:
        return _read(_Reader(data))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _Reader:
    """Reads values from a file, one after another."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.position = data, 0

    def take(self, size: int, what: str) -> np.ndarray:
        if size > len(self.data) - self.position:
            raise UserError(f"{what}: the file ends before it; download or convert it again")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, kind: str, what: str) -> Any:
        return self.take(np.dtype(kind).itemsize, what).view(kind)[0].item()

    def text(self, what: str) -> str:
        size = self.number("<u8", what)
        try:
            return self.take(size, what).tobytes().decode()
        except UnicodeDecodeError:
            raise UserError(f"{what}: not valid UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise UserError(f"{key}: unknown type {kind}")
        value = self.number(_SCALARS[kind], key)
        if kind == _BOOL and value > 1:
            raise UserError(f"{key}: {value} is not a boolean")
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> list[Any]:
        kind, size = self.number("<u4", key), self.number("<u8", key)
        if kind == _STRING:
            if 8 * size > len(self.data) - self.position:
                raise UserError(f"{key}: the file ends before it; download or convert it again")
            return [self.text(key) for _ in range(size)]
        if kind not in _SCALARS:
            raise UserError(f"{key}: arrays of type {kind} are not read")
        kind_of = np.dtype(_SCALARS[kind])
        return self.take(size * kind_of.itemsize, key).view(kind_of).tolist()


def _read(file: _Reader) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if len(file.data) < 24 or file.take(4, "header").tobytes() != _MAGIC:
        raise UserError("not a GGUF file that can be read (it does not begin with GGUF)")
    version = file.number("<u4", "header")
    if version in (struct.unpack(">I", struct.pack("<I", each))[0] for each in (1, *_VERSIONS)):
        raise UserError("a big-endian GGUF file, which is not read; convert it to little-endian")
    if version not in _VERSIONS:
        raise UserError(f"GGUF version {version} is not read, 2 and 3 are; convert it again")
    num_tensors, num_keys = file.number("<u8", "header"), file.number("<u8", "header")
    metadata: dict[str, Any] = {}
    for number in range(num_keys):
        key = printable(file.text(f"key {number + 1} of {num_keys}"))
        if key in metadata:
            raise UserError(f"{key}: is there twice")
        metadata[key] = file.value(file.number("<u4", key), key)
    listed = [_described(file, number) for number in range(num_tensors)]
    return metadata, _placed(file, listed, _alignment(metadata))


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise UserError(f"{_ALIGNMENT}: must be a power of two, not {alignment!r}")
    return alignment


def _described(file: _Reader, number: int) -> tuple[str, tuple[int, ...], int, int]:
    """Returns name, shape, type and offset of the next tensor."""
    name = printable(file.text(f"tensor {number + 1}"))
    what = f"tensor {name}"
    axes = file.number("<u4", what)
    if not 1 <= axes <= 4:
        raise UserError(f"{what}: must have 1 to 4 axes (got {axes})")
    shape = tuple(file.number("<u8", what) for _ in range(axes))[::-1]
    kind, offset = file.number("<u4", what), file.number("<u8", what)
    if 0 in shape:
        raise UserError(f"{what}: has shape {shape}, which is empty")
    if kind not in TYPES:
        raise UserError(
            f"{what}: quantisation type {kind}{_name_of(kind)} is not read; read are "
            f"{', '.join(TYPES.values())}"
        )
    return name, shape, kind, offset


def _name_of(kind: int) -> str:
    from gguf import GGMLQuantizationType

    known = {int(each): each.name for each in GGMLQuantizationType}
    return f" ({known[kind]})" if kind in known else ""


def _placed(
    file: _Reader, listed: list[tuple[str, tuple[int, ...], int, int]], alignment: int
) -> dict[str, GgufTensor]:
    """Returns the tensors; their bytes must follow one another, as llama.cpp requires."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    start, expected = _rounded(file.position, alignment), 0
    found: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in listed:
        what = f"tensor {name}"
        if name in found:
            raise UserError(f"{what}: is there twice")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if shape[-1] % block:
            raise UserError(f"{what}: rows of {shape[-1]} are no whole blocks of {TYPES[kind]}")
        if offset != expected:
            raise UserError(f"{what}: begins at byte {offset} of the data, not at {expected}")
        count = math.prod(shape) // block * size
        file.position = start + offset
        data = file.take(count, what)
        found[name] = GgufTensor(name=name, kind=kind, shape=shape, data=data)
        expected = _rounded(offset + count, alignment)
    return found


def _rounded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
