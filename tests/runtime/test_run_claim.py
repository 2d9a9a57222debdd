"""Which folders a run may take, and that one process has it alone."""

from __future__ import annotations

import os
import pathlib

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.run_claim import check_run_folder, lock_run_folder
from agentrm_jax.runtime.run_directory import RESOLVED, STAGE_FILE, VERSIONS


def test_new_empty_and_own_folders_may_be_taken(tmp_path: pathlib.Path) -> None:
    check_run_folder(tmp_path / "new" / "deep")
    check_run_folder(tmp_path)
    (tmp_path / ".lock").touch()
    check_run_folder(tmp_path)
    for name in (RESOLVED, VERSIONS, f"sft/{STAGE_FILE}"):
        run = tmp_path / name.replace("/", "-")
        (run / name).parent.mkdir(parents=True)
        (run / name).touch()
        (run / "notes.txt").touch()
        check_run_folder(run, ["sft"])


def test_other_folders_are_refused_and_left_as_they_are(tmp_path, monkeypatch) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in "abcd":
        (foreign / name).touch()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(foreign)
    for path, message in (
        (foreign, "is the working folder or above it"),
        (tmp_path, "is the working folder or above it"),
        (pathlib.Path("."), "'.': is the working folder or above it"),
        (pathlib.Path(""), "is the working folder or above it"),
        (pathlib.Path(".."), "is the working folder or above it"),
        (pathlib.Path("/"), "is the working folder or above it"),
        (pathlib.Path("gs://bucket/run"), "set leases.store to the URL"),
        (pathlib.Path("s3://bucket"), "set leases.store to the URL"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "file" / "x", "is not a folder"),
        (tmp_path / "loop", "cannot be read"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\x1b[31m", r"a\\x1b\[31m: a folder's name must not hold control"),
        (tmp_path / "a\0b", r"a\\x00b: a folder's name must not hold control"),
    ):
        with pytest.raises(UserError, match=message) as error:
            check_run_folder(path)
        assert str(error.value).isprintable()
    monkeypatch.chdir(tmp_path / "..")
    with pytest.raises(UserError, match=r"holds files, but no run \(a, b, c, ...\); choose"):
        check_run_folder(foreign)
    assert sorted(os.listdir(foreign)) == list("abcd")


def test_the_lock_is_held_by_one(tmp_path) -> None:
    with (
        lock_run_folder(tmp_path / "run"),
        pytest.raises(UserError, match="another process works in this folder"),
    ):
        lock_run_folder(tmp_path / "run")
    lock_run_folder(tmp_path / "run").close()


def test_a_lock_that_is_no_regular_file_is_refused(tmp_path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    for make in (
        lambda path: path.symlink_to(target),
        lambda path: path.symlink_to(tmp_path / "nowhere"),
        os.mkfifo,
        os.mkdir,
    ):
        run = tmp_path / "run"
        run.mkdir()
        make(run / ".lock")
        with pytest.raises(UserError, match=r"\.lock: .*must be a regular file"):
            lock_run_folder(run)
        run.rename(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
    assert target.read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()
