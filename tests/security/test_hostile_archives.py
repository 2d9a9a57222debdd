"""Models, archives and arrays of strangers: bombs, pickles and paths that lead elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import random
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hostile_cases import MANY, NAMES, damaged, harmless, is_visible, refusal

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.tokenizer import load_tokenizer
from agentrm_jax.envs.alfworld.files import games_folder
from agentrm_jax.envs.archives import read_archive
from agentrm_jax.envs.tools import sheet_file
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.convert_gguf import convert_gguf
from agentrm_jax.runtime.array_files import read_array, write_array
from agentrm_jax.runtime.manifests import check_manifest, unlisted_files
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh


class Evil:
    """Touches a file when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def refused(read, path: pathlib.Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        read()
    message = str(error.value)
    assert is_visible(message)
    assert path is None or str(path) in message
    return message


def tiny_mesh():
    import jax

    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> pathlib.Path:
    """A model in the format of Hugging Face."""
    from agentrm_jax.model import hugging_face
    from agentrm_jax.testing import tiny_model

    folder, model = tmp_path_factory.mktemp("exported") / "model", tiny_model()
    hugging_face.save(folder, model.config, model.params, add_files=model.tokenizer.export)
    (folder / "manifest.json").unlink()  # as models of others have none
    return folder


@pytest.fixture
def copy(exported, tmp_path, monkeypatch) -> pathlib.Path:
    import shutil

    monkeypatch.chdir(tmp_path)
    return shutil.copytree(exported, tmp_path / "model")


def load(folder: pathlib.Path):
    return models.load_policy(folder, "float32", tiny_mesh())


EVIL = pickle.dumps(Evil())
WEIGHTS = {
    "a pickle": EVIL,
    "a zip with a pickle": None,
    "a length beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "a length beyond memory": struct.pack("<Q", 99_000_000) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "deep JSON": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "empty": b"",
    "a shape beyond memory": None,
}


def weights(name: str) -> bytes:
    if (content := WEIGHTS[name]) is not None:
        return content
    if name == "a zip with a pickle":  # what torch.save writes
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model/data.pkl", EVIL)
        return file.getvalue()
    entry = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}
    head = json.dumps({"model.embed_tokens.weight": entry}).encode()
    return struct.pack("<Q", len(head)) + head + b"\0" * 4


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none(copy, name):
    (copy / "model.safetensors").write_bytes(weights(name))
    with harmless(copy.parent):
        refused(lambda: load(copy), copy)
    assert not (copy.parent / "executed").exists()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_an_index_of_weights_names_files_of_its_folder_only(copy, name):
    (copy / "model.safetensors").rename(copy.parent / "outside.safetensors")
    for listed in (name, f"{name}.safetensors", f"{name}/outside.safetensors",
                   "../outside.safetensors", str(copy.parent / "outside.safetensors")):  # fmt: skip
        index = {"weight_map": {"model.embed_tokens.weight": listed}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        with harmless(copy.parent):
            refused(lambda: load(copy), copy)


@MANY
def test_files_of_a_model_with_damage(copy, cases):
    """`config.json`, the tokenizer, its chat template and the header of the weights."""
    rng, refusals = random.Random(1), 0
    files = [path for path in sorted(copy.iterdir()) if path.suffix in (".json", ".safetensors")]
    contents = {path: path.read_bytes() for path in files}
    with harmless(copy.parent):
        for number in range(cases // 10):
            path = files[number % len(files)]
            content = contents[path]
            part = 4000 if path.suffix == ".safetensors" else len(content)
            path.write_bytes(damaged(rng, content[:part]) + content[part:])
            if (message := refusal(lambda: load(copy))) is not None:
                refusals += 1
                assert is_visible(message)
            path.write_bytes(content)
    assert refusals > cases / 40
    load(copy)


@MANY
def test_tokenizers_with_damage(copy, cases):
    rng, refusals = random.Random(2), 0
    path = copy / "tokenizer.json"
    content = path.read_bytes()
    for _ in range(cases // 5):
        path.write_bytes(damaged(rng, content))
        message = refusal(lambda: load_tokenizer(copy).encode("Action: go"))
        if message is not None:
            refusals += 1
            assert is_visible(message)
    assert refusals > cases / 20


def test_a_pickle_is_no_gguf_file(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(EVIL)
    with harmless(tmp_path):
        refused(lambda: convert_gguf(tmp_path / "model.gguf", tmp_path / "to", "float32"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_arrays_hold_no_pickles_and_no_bombs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "values.npz"
    write_array(path, np.arange(5.0))
    np.testing.assert_array_equal(read_array(path), np.arange(5.0))
    np.savez(path, values=np.array([Evil()], dtype=object))
    with harmless(tmp_path):
        refused(lambda: read_array(path), path)
    np.savez_compressed(path, values=np.zeros(50_000_000))
    assert path.stat().st_size < 1_000_000
    assert "compressed" in refused(lambda: read_array(path), path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("values.npy", EVIL)
    with harmless(tmp_path):
        refused(lambda: read_array(path), path)
    assert not (tmp_path / "executed").exists()


def tar(members: list[tarfile.TarInfo], content: bytes = b"{}") -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return whole.getvalue()


def linked(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def writable(name: str) -> str:
    """The name as an archive can have it."""
    return name.replace("\0", "").replace("\ud83d", "") or "x"


GAME = "json_2.1.1/valid_seen/task/trial/game.tw-pddl"


@pytest.mark.parametrize("name", [*NAMES, "/etc/passwd", f"../{GAME}"], ids=range(len(NAMES) + 2))
def test_archives_write_nothing_elsewhere(tmp_path, monkeypatch, name):
    """Paths that lead out, links to other places and devices, next to one sound game."""
    members = [
        tarfile.TarInfo(GAME),
        linked("json_2.1.1/valid_seen/out", str(tmp_path / "outside"), tarfile.SYMTYPE),
        linked("json_2.1.1/valid_seen/hard", "/etc/passwd", tarfile.LNKTYPE),
        linked("json_2.1.1/valid_seen/device", "", tarfile.CHRTYPE),
        tarfile.TarInfo("json_2.1.1/valid_seen/out/written"),
        tarfile.TarInfo(writable(name)),
        tarfile.TarInfo(f"json_2.1.1/valid_seen/{writable(name)}/game.tw-pddl"),
    ]
    data, cache = tmp_path / "data", tmp_path / "cache"
    (data / "alfworld").mkdir(parents=True)
    (data / "alfworld" / "alfworld_games_474.tar.xz").write_bytes(lzma.compress(tar(members)))
    monkeypatch.setenv("AGENTRM_DATA", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with harmless(cache):
        message = refusal(games_folder)
        assert message is None or is_visible(message)
        assert message is not None or cache in games_folder().parents
    assert not [path for path in cache.rglob("*") if path.is_symlink()]
    assert not (tmp_path / "outside").exists()


def memory_of(work) -> int:
    """The most bytes that Python held during the work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_tar_bombs_are_refused_within_their_limit(tmp_path, pack):
    path = tmp_path / "games.tar.xz"
    path.write_bytes(pack(bytes(100 << 20)))
    assert path.stat().st_size < 1 << 20
    most = memory_of(lambda: refused(lambda: read_archive(path, most_bytes=8 << 20), path))
    assert most < 32 << 20


def test_sparse_members_of_an_archive_are_refused(tmp_path):
    """A few bytes that say that they are terabytes."""
    member = tarfile.TarInfo(GAME)
    member.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": GAME,
        "GNU.sparse.realsize": str(1 << 42),
    }  # fmt: skip
    path = tmp_path / "games.tar.gz"
    path.write_bytes(gzip.compress(tar([member], b"0\n".ljust(512, b"\0"))))
    assert memory_of(lambda: refused(lambda: read_archive(path), path)) < 8 << 20


def test_zip_bombs_are_no_workbook(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    path = tmp_path / sheet_file.FILE
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", b"<a>" + bytes(200 << 20))
    most = memory_of(lambda: refused(sheet_file.workbook, path))
    assert most < 32 << 20


def test_gzip_bombs_are_no_catalogue(tmp_path, monkeypatch):
    from agentrm_jax.envs.webshop import catalogue

    path = tmp_path / "products.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(200 << 20)))
    monkeypatch.setattr(catalogue, "MOST_BYTES", 8 << 20)
    most = memory_of(lambda: refused(lambda: list(catalogue._distinct(path)), path))
    assert most < 64 << 20


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_manifests_list_files_of_their_folder_only(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    listed = {"written_by": "agentrm_jax", "sha256": {name: "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps(listed))
    with harmless(folder):
        refused(lambda: check_manifest(folder))
        unlisted_files(folder)
