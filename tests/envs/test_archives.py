"""Damaged data is refused with its file's name, or read as it was; nothing is silently less."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs import data_directory as data
from agentrm_jax.envs.alfworld import files
from agentrm_jax.envs.archives import read_archive
from agentrm_jax.envs.registry import load_family
from agentrm_jax.envs.tools import http, labels, sheet_file

REAL = os.environ.get("AGENTRM_DATA", "")
GAMES = {f"json_2.1.1/valid_seen/task-{n}/trial/game.tw-pddl": b"{}" * n * 99 for n in range(1, 9)}


def tar(members):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def flipped(content, draw):
    bit = draw.randrange(8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress])
def test_a_flipped_bit_of_an_archive_is_refused_or_harmless(tmp_path, pack):
    path, draw, packed = tmp_path / "games.tar.xz", random.Random(0), pack(tar(GAMES))
    path.write_bytes(packed)
    assert dict(read_archive(path)) == GAMES
    refused = 0
    for _ in range(300):
        path.write_bytes(flipped(packed, draw))
        try:
            assert dict(read_archive(path)) == GAMES
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: cannot be unpacked (")  # noqa: PT017
    assert refused > 200


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_archive_is_refused(tmp_path, keep):
    path, packed = tmp_path / "games.tar.xz", lzma.compress(tar(GAMES))
    path.write_bytes(packed[: int(keep * len(packed))])
    with pytest.raises(UserError, match=r"games.tar.xz: (cannot be unpacked|holds)"):
        assert dict(read_archive(path)) == GAMES


def test_an_archive_that_was_damaged_before_it_was_packed(tmp_path):
    content = bytearray(tar(GAMES))
    content[content.index(b"task-5") + 1] ^= 1  # in a header
    path = tmp_path / "games.tar.xz"
    path.write_bytes(lzma.compress(bytes(content)))
    with pytest.raises(UserError, match="damaged after 4 files"):
        read_archive(path)


@pytest.mark.parametrize("content", [tar(GAMES), b"nothing", b"\xfd7zXZ\0", b"\x1f\x8b\x08", b""])
def test_what_has_no_checksum_or_is_no_archive(tmp_path, content):
    path = tmp_path / "games.tar.xz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"games.tar.xz: cannot be unpacked"):
        read_archive(path)


def test_an_archive_that_is_too_large_is_refused_before_memory_is_full(tmp_path):
    path = tmp_path / "games.tar.xz"
    path.write_bytes(lzma.compress(bytes(50_000_000)))
    with pytest.raises(UserError, match="it holds more than 1,000,000 bytes"):
        read_archive(path, most_bytes=1_000_000)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "data/alfworld/alfworld_games_474.tar.xz"
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.compress(tar(GAMES)))
    return path


def cached(tmp_path):
    found = (p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")
    return sorted(p.name for p in found)


def test_games_are_unpacked_with_their_checksums(archive, tmp_path):
    folder = files.games_folder()
    names = [p.relative_to(folder.parent).as_posix() for p in folder.rglob("game.tw-pddl")]
    assert sorted(names) == sorted(GAMES)
    assert cached(tmp_path) == [*["game.tw-pddl"] * 8, "sha256.json"]
    files.check_unpacked(folder.parent)


def test_nothing_of_a_damaged_archive_is_cached(archive, tmp_path):
    archive.write_bytes(flipped(archive.read_bytes(), random.Random(1)))
    with pytest.raises(UserError, match=r"alfworld_games_474.tar.xz: cannot be unpacked"):
        files.games_folder()
    assert cached(tmp_path) == []
    archive.write_bytes(lzma.compress(tar(GAMES)))
    assert files.games_folder().is_dir()  # as soon as it is whole


def _damage(folder, kind):
    game = folder / "json_2.1.1/valid_seen/task-3/trial/game.tw-pddl"
    match kind:
        case "changed":
            game.write_bytes(flipped(game.read_bytes(), random.Random(0)))
        case "gone":
            game.unlink()
        case "one more":
            shutil.copytree(game.parent, game.parents[1] / "other")
        case "no list":
            (folder / "sha256.json").unlink()
        case "bad list":
            (folder / "sha256.json").write_text("[" * 9999)
        case "emptied":
            game.write_bytes(b"")


@pytest.mark.parametrize("kind", ["changed", "gone", "one more", "no list", "bad list", "emptied"])
def test_damage_in_the_cache_is_noticed(archive, kind):
    folder = files.games_folder().parent
    _damage(folder, kind)
    with pytest.raises(UserError, match=r"games damaged, the first is .*delete the folder"):
        files.check_unpacked(folder)
    files._unpacked.cache_clear()
    with pytest.raises(UserError, match="games damaged"):
        files.games_folder()


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_a_lock_that_is_no_regular_file_is_refused_and_left_alone(tmp_path, kind):
    target, path = tmp_path / "precious", tmp_path / "games.lock"
    target.write_text("kept")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"games.lock: must be a regular file"), files._lock(path):
        pass
    assert target.read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_keeps_what_is_in_its_file(tmp_path):
    path = tmp_path / "games.lock"
    path.write_text("kept")
    with files._lock(path):
        assert path.read_text() == "kept"


def test_a_cache_that_cannot_be_written_is_one_line(archive, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"alfworld_games_474.tar.xz: cannot be unpacked: .*cache"):
        files.games_folder()


def without_a_home(monkeypatch, tmp_path):
    def nobody(*_):
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "AGENTRM_DATA", "ALFWORLD_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))


def test_a_user_without_a_home_has_a_cache_among_temporary_files(monkeypatch, tmp_path):
    without_a_home(monkeypatch, tmp_path)
    expected = tmp_path / f"agentrm_jax-{os.getuid()}"
    assert data.home_directory() is None
    assert data.cache_directory() == data.data_directory() == expected
    assert expected.stat().st_mode & 0o777 == 0o700
    assert "holds neither" in (files.missing_games() or "")


def test_a_temporary_cache_of_somebody_else_is_refused(monkeypatch, tmp_path):
    without_a_home(monkeypatch, tmp_path)
    (tmp_path / f"agentrm_jax-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(UserError, match="belongs to somebody else; set XDG_CACHE_HOME"):
        data.cache_directory()


def test_a_data_directory_of_an_unknown_user(monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", "~nobody-of-this-name/data")
    with pytest.raises(UserError, match="AGENTRM_DATA: ~nobody-of-this-name/data"):
        data.data_directory()


def test_a_released_file_of_its_size_with_other_contents_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    path = tmp_path / "sciworld/max_steps.json"
    path.parent.mkdir()
    size, _ = data.KNOWN["sciworld/max_steps.json"]
    path.write_bytes(b" " * size)
    with pytest.raises(UserError, match=r"max_steps.json: damaged: its sha256"):
        data.require("sciworld/max_steps.json", "somewhere")
    path.write_bytes(b" " * (size + 1))  # another release
    assert data.require("sciworld/max_steps.json", "somewhere") == path


def test_a_recorded_answer_carries_its_checksum(monkeypatch, tmp_path):
    path = tmp_path / "answer.json"
    http._write(path, {"endpoint": "e", "parameters": {}, "status": 200, "text": "{}",
                       "sha256": http.canonical_form("{}")})  # fmt: skip
    assert http._read(path, "e", {}).text == "{}"
    for text in ("[]", None, 3):
        path.write_text(json.dumps({**json.loads(path.read_text()), "text": text}))
        with pytest.raises(UserError, match=r"answer.json: not a recorded answer \("):
            http._read(path, "e", {})


_READERS = {
    "alfworld/alfworld_games_474.tar.xz": lambda: files.games_folder(),
    "alfworld/eto_gamefile_id.txt": lambda: files.paper_names(),
    "pddl/barman/p07.pddl": lambda: load_family("pddl").tasks("paper", kinds=["barman"], n=20),
    "sciworld/test_indices.json": lambda: _all_paper_tasks("scienceworld"),
    "tool/sheet.jsonl": lambda: labels.agentgym_labels("sheet"),
    "tool/todo.jsonl": lambda: labels.agentgym_labels("todo"),
    "tool/sheet_test.xlsx": lambda: sheet_file.workbook(),
    "webshop/webshop_1k_lucene_docs.jsonl.gz": lambda: load_family("webshop").counts(),
    "webshop/items_ins_v2_1000.json": lambda: load_family("webshop").counts(),
    "jericho/905.z5": lambda: _play_905(),
}


def _all_paper_tasks(name):
    family = load_family(name)
    return family.tasks("paper", kinds=family.kinds(), n=300)


def _play_905():
    family = load_family("jericho")
    family.create().reset(family.tasks("test", kinds=["905"], n=1)[0])


@pytest.mark.skipif(not REAL, reason="AGENTRM_DATA is not set")
@pytest.mark.parametrize("relative", _READERS)
def test_a_flipped_bit_of_any_real_file_is_one_line_with_its_name(tmp_path, monkeypatch, relative):
    source = Path(REAL) / relative
    folder = relative.partition("/")[0]
    if (
        not source.is_file()
        or load_family(
            {"sciworld": "scienceworld", "tool": "tooloperation", "alfworld": "maze"}.get(
                folder, folder
            )
        ).missing()
    ):
        pytest.skip(f"{relative} cannot be read here")  # fmt: skip
    shutil.copytree(Path(REAL) / folder, tmp_path / "data" / folder)
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, draw = tmp_path / "data" / relative, random.Random(relative)
    path.chmod(0o644)
    whole = path.read_bytes()
    for number in range(50):
        path.write_bytes(flipped(whole, draw))
        os.utime(path, ns=(number, number))
        with pytest.raises(UserError) as raised:
            _READERS[relative]()
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
