"""Folders that commands write: foreign files stay, nothing is left of what fails."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.manifests import check_manifest, write_manifest
from agentrm_jax.runtime.output_folders import (
    check_output_file,
    check_output_folder,
    new_file,
    new_folder,
)


def _write(directory, text="one"):
    with new_folder(directory) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)


def _tree(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes()
            for p in directory.rglob("*") if p.is_file()}  # fmt: skip


def _refused(directory, match, inputs=()):
    with pytest.raises(UserError, match=match) as error:
        check_output_folder(directory, inputs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("before", ["absent", "empty", "ours", "deep"])
def test_an_absent_or_empty_folder_and_one_of_ours_are_written(tmp_path, before):
    target = tmp_path / "x" / "y" if before == "deep" else tmp_path / "out"
    if before == "empty":
        target.mkdir()
    if before == "ours":
        _write(target, "before")
        (target / "an_empty_folder").mkdir()
    _write(target)
    assert (target / "inner" / "a.txt").read_text() == "one"
    listed = json.loads((target / "manifest.json").read_text())["sha256"]
    assert list(listed) == ["inner/a.txt"]
    check_manifest(target)
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", ".hidden", "inner/b.txt", "deep/er/b.txt", "inner/a.txt", "manifest.json", "link",
     "linked_folder", "broken"],
)  # fmt: skip
def test_a_foreign_file_refuses_the_folder_and_stays(tmp_path, foreign):
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    _write(target)
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    path = target / foreign
    if foreign == "link":
        path.symlink_to(elsewhere / "kept")
    elif foreign == "linked_folder":
        path.symlink_to(elsewhere)
    elif foreign == "broken":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"name": "an app"}')
    before = _tree(tmp_path)
    message = _refused(target, r"out: holds files that agentrm did not write, .*choose an empty")
    assert foreign in message
    with pytest.raises(UserError, match="did not write"):
        _write(target, "two")
    assert _tree(tmp_path) == before
    assert path.is_symlink() or path.read_text() == '{"name": "an app"}'


def test_a_folder_with_a_manifest_of_another_program_is_foreign(tmp_path):
    (tmp_path / "app").mkdir()
    for contents in ('{"name": "app"}', '{"sha256": {}}', '{"sha256": {"../x": "0"}}', "[]", "{"):
        (tmp_path / "app" / "manifest.json").write_text(contents)
        assert "manifest.json" in _refused(tmp_path / "app", "did not write")


def test_a_file_that_comes_while_we_work_stays(tmp_path):
    _write(tmp_path / "out")
    with pytest.raises(UserError, match=r"did not write.*late\.txt"), new_folder(tmp_path / "out"):
        (tmp_path / "out" / "late.txt").write_text("mine")
    assert (tmp_path / "out" / "late.txt").read_text() == "mine"
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_files_links_and_the_working_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "", "..", "/", str(tmp_path), "../" + tmp_path.name):
        _refused(pathlib.Path(name), "is the working folder or above it")
    (tmp_path / "file").write_text("mine")
    _refused(tmp_path / "file", "file: is a file")
    _refused(tmp_path / "file" / "below", "file is not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    _refused(tmp_path / "link", "is a symbolic link")
    _refused(tmp_path / "dangling", "is a symbolic link")
    _refused(tmp_path / ("x" * 300), "too long")
    assert (tmp_path / "file").read_text() == "mine"


def test_inputs_inside_the_folder_are_refused(tmp_path):
    _write(tmp_path / "out")
    inside = tmp_path / "out" / "inner" / "a.txt"
    (tmp_path / "alias").symlink_to(inside)
    for given in (inside, tmp_path / "out", tmp_path / "alias"):
        _refused(tmp_path / "out", "which is read", [given])
    check_output_folder(tmp_path / "out", [tmp_path / "absent", tmp_path])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_nothing_is_left_of_what_fails(tmp_path, error):
    _write(tmp_path / "out")

    def fail():
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert _tree(tmp_path / "out")["inner/a.txt"] == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path):
    def full(writing):
        with writing:
            raise OSError(28, "No space left on device")

    for name, writing in (("folder", new_folder), ("file", new_file)):
        with pytest.raises(UserError, match=rf"{name}: cannot be written .*No space left"):
            full(writing(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_temporary_folders_of_killed_processes_are_removed_and_others_stay(tmp_path):
    foreign = tmp_path / "out.partial", tmp_path / ".out.mine.partial"
    for path in foreign:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    code = (
        "import os, pathlib, sys\n"
        "from agentrm_jax.runtime.output_folders import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as folder: os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert len(list(tmp_path.iterdir())) == 3
    with new_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        with new_folder(tmp_path / "out") as second:  # another one at work is not disturbed
            (second / "a").write_text("second")
        assert first.is_dir()
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.mine.partial", "out", "out.partial"]
    assert all((path / "notes.txt").read_text() == "mine" for path in foreign)


def test_two_writers_of_a_file_leave_the_last_whole_one(tmp_path):
    path = tmp_path / "a" / "scores.jsonl"
    with new_file(path) as first:
        first.write("first\n" * 10_000)
        with new_file(path) as second:
            second.write("second\n")
        assert path.read_text() == "second\n"
    assert path.read_text() == "first\n" * 10_000

    def fail():
        with new_file(path) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "first\n" * 10_000
    assert [p.name for p in path.parent.iterdir()] == ["scores.jsonl"]


def test_a_file_that_must_not_be_written_is_refused(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    for path, inputs in ((tmp_path, ()), (tmp_path / "link", ()), (mine, (mine,)),
                         (mine / "x", ()), (pathlib.Path(""), ())):  # fmt: skip
        with pytest.raises(UserError):
            check_output_file(path, inputs)
    check_output_file(mine)
    check_output_file(tmp_path / "new" / "file")


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_listed_file_is_found(tmp_path, bit):
    (tmp_path / "a").write_bytes(bytes(range(7)))
    write_manifest(tmp_path)
    for place in range(7):
        changed = bytearray(range(7))
        changed[place] ^= 1 << bit
        (tmp_path / "a").write_bytes(changed)
        with pytest.raises(UserError, match=r"a: its checksum differs from manifest\.json"):
            check_manifest(tmp_path)
