"""GGUF's container and types: read as the reference reads them, every damage one line."""

from __future__ import annotations

import pathlib
import struct

import numpy as np
import pytest

from agentrm_jax.core.errors import UserError

gguf = pytest.importorskip("gguf", reason="needs the extra [gguf]")

from agentrm_jax.model.gguf_file import TYPES, GgufTensor, read_gguf_file  # noqa: E402

GOLDENS = np.load(pathlib.Path(__file__).parent / "goldens" / "gguf_types.npz")
PLAIN = ("F32", "F16", "BF16")


@pytest.mark.parametrize("name", [name for name in TYPES.values() if name not in PLAIN])
def test_quantised_values_are_those_of_llama_cpp(name):
    kind = gguf.GGMLQuantizationType[name]
    blocks, wanted = GOLDENS[f"{name}.blocks"], GOLDENS[f"{name}.values"]
    assert np.unique(wanted).size > 2
    tensor = GgufTensor(name="x", kind=int(kind), shape=wanted.shape, data=blocks.ravel())
    np.testing.assert_array_equal(tensor.values(), wanted)
    one_row = GgufTensor(name="x", kind=int(kind), shape=(wanted.size,), data=blocks.ravel())
    np.testing.assert_array_equal(one_row.values(), wanted.ravel())


@pytest.mark.parametrize("name", PLAIN)
def test_floats_are_read(name):
    values = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)
    words = values.view(np.uint32)
    stored, wanted = {
        "F32": (values, values),
        "F16": (values.astype(np.float16), values.astype(np.float16).astype(np.float32)),
        "BF16": ((words >> 16).astype(np.uint16), (words & 0xFFFF0000).view(np.float32)),
    }[name]
    data, kind = stored.view(np.uint8).ravel(), int(gguf.GGMLQuantizationType[name])
    tensor = GgufTensor(name="x", kind=kind, shape=(3, 4), data=data)
    np.testing.assert_array_equal(tensor.values(), wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    data = np.asarray([1, value], np.float32).view(np.uint8)
    with pytest.raises(UserError, match="tensor x: holds values that are not finite"):
        GgufTensor(name="x", kind=0, shape=(2,), data=data).values()


def written(path: pathlib.Path, **kwargs) -> pathlib.Path:
    writer = gguf.GGUFWriter(path, "llama", **kwargs)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -30_000)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "é \U0001f600")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.texts", ["x", "", "yy"])
    writer.add_tensor("one", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("two", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors_are_those_of_the_package(tmp_path):
    path = written(tmp_path / "x.gguf")
    metadata, tensors = read_gguf_file(path)
    reader = gguf.GGUFReader(path)
    wanted = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert metadata == wanted
    assert metadata["a.text"] == "é \U0001f600"
    assert metadata["a.bool"] is True
    np.testing.assert_array_equal(tensors["one"].values(), np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(tensors["two"].values(), np.arange(5))


def refused(path: pathlib.Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        _ = [tensor.values() for tensor in read_gguf_file(path)[1].values()]
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    whole = written(tmp_path / "x.gguf").read_bytes()
    last = whole.rindex(np.float16(4).tobytes()) + 2
    for size in [*range(0, last, 7), last - 1]:
        (tmp_path / "x.gguf").write_bytes(whole[:size])
        refused(tmp_path / "x.gguf", "not a GGUF file that can be read|the file ends before it")
    (tmp_path / "x.gguf").write_bytes(whole[:last])
    assert len(read_gguf_file(tmp_path / "x.gguf")[1]) == 2


def test_no_flipped_bit_is_a_traceback(tmp_path):
    """The format has no checksums: other values may be read, but nothing else may be raised."""
    path = written(tmp_path / "x.gguf")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for place in random.integers(0, len(whole), 400):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            for tensor in read_gguf_file(path)[1].values():
                tensor.values()
        except UserError:
            found += 1
    assert found > 100


@pytest.mark.parametrize("endian", [gguf.GGUFEndian.BIG])
def test_big_endian_files_are_refused(endian, tmp_path):
    refused(written(tmp_path / "x.gguf", endianess=endian), "a big-endian GGUF file")


def container(
    path: pathlib.Path,
    *,
    version: int = 3,
    keys: tuple[bytes, ...] = (),
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...] = (),
    data: bytes = b"\0" * 4096,
) -> pathlib.Path:
    """A file byte by byte: keys as they are stored; tensors with their axes innermost first."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys)
    for name, axes, kind, offset in tensors:
        head += text(name.encode()) + struct.pack("<I", len(axes))
        head += b"".join(struct.pack("<Q", axis) for axis in axes) + struct.pack(
            "<IQ", kind, offset
        )
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


U32 = struct.pack("<I", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "GGUF version 1 is not read"),
        ({"version": 4}, "GGUF version 4 is not read"),
        ({"keys": (key(b"a", 4, U32), key(b"a", 4, U32))}, "a: is there twice"),
        ({"keys": (key(b"a", 13, U32),)}, "a: unknown type 13"),
        ({"keys": (key(b"a", 7, b"\x02"),)}, "a: 2 is not a boolean"),
        ({"keys": (key(b"a", 8, text(b"\xff")),)}, "a: not valid UTF-8"),
        ({"keys": (text(b"\xff"),)}, "key 1 of 1: not valid UTF-8"),
        ({"keys": (key(b"a", 8, struct.pack("<Q", 2**63)),)}, "a: the file ends before it"),
        ({"keys": (key(b"a", 9, struct.pack("<IQ", 4, 2**62)),)}, "a: the file ends before it"),
        ({"keys": (key(b"a", 9, struct.pack("<IQ", 8, 2**62)),)}, "a: the file ends before it"),
        ({"keys": (key(b"a", 9, struct.pack("<IQ", 9, 1)),)}, "a: arrays of type 9"),
        ({"keys": (key(b"general.alignment", 4, struct.pack("<I", 24)),)}, "of two, not 24"),
        ({"keys": (key(b"general.alignment", 4, struct.pack("<I", 0)),)}, "a power of two, not 0"),
        ({"tensors": (("x", (4,), 0, 0), ("x", (4,), 0, 32))}, "tensor x: is there twice"),
        ({"tensors": (("x", (4,), 0, 8),)}, "tensor x: begins at byte 8 of the data, not at 0"),
        ({"tensors": (("x", (4,), 0, 0), ("y", (4,), 0, 0))}, "tensor y: begins at byte 0"),
        ({"tensors": (("x", (4,), 0, 2**63),)}, "tensor x: begins at byte"),
        ({"tensors": (("x", (2**40, 2**20), 0, 0),)}, "tensor x: the file ends before it"),
        ({"tensors": (("x", (4096,), 0, 0),)}, "tensor x: the file ends before it"),
        ({"tensors": (("x", (0, 4), 0, 0),)}, r"tensor x: has shape \(4, 0\), which is empty"),
        ({"tensors": (("x", (), 0, 0),)}, "tensor x: must have 1 to 4 axes"),
        ({"tensors": (("x", (1,) * 5, 0, 0),)}, "tensor x: must have 1 to 4 axes"),
        ({"tensors": (("x", (48,), 2, 0),)}, "tensor x: rows of 48 are no whole blocks of Q4_0"),
        ({"tensors": (("x", (128,), 41, 0),)}, r"quantisation type 41 \(Q1_0\) is not read"),
        ({"tensors": (("x", (4,), 24, 0),)}, r"quantisation type 24 \(I8\) is not read"),
        ({"tensors": (("x", (4,), 28, 0),)}, r"quantisation type 28 \(F64\) is not read"),
        ({"tensors": (("x", (4,), 999, 0),)}, "quantisation type 999 is not read"),
        ({"tensors": (("a\nb\x1b", (4,), 999, 0),)}, r"tensor a\\nb\\x1b: quantisation type"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, message, tmp_path):
    refused(container(tmp_path / "x.gguf", **changes), message)
