"""The list of a stage's files finds what checksums of single records do not."""

from __future__ import annotations

import zlib

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.run_directory import STAGE_FILE
from agentrm_jax.runtime.stage_files import KEY, check_stage_files, stage_ended, stage_files


def lines(*records) -> bytes:
    texts = [str(record).encode() for record in records]
    return b"".join(b'{"crc32":"%08x","record":%b}\n' % (zlib.crc32(text), text) for text in texts)


RECORD = {"depends_on": {}, "seconds": 1.0}


def make(folder):
    (folder / "greedy").mkdir()
    (folder / "greedy" / "episodes.jsonl").write_bytes(lines(1, 2, 3))
    (folder / "beam").mkdir()
    (folder / "beam" / "episodes.jsonl").write_bytes(lines(4, 5, 6))
    (folder / "seconds.json").write_text("{}")
    (folder / ".hidden.json").write_text("{}")
    files = stage_files(folder)
    write_json_atomic(folder / STAGE_FILE, {**RECORD, "summary": {KEY: files}})
    return files


def test_the_files_are_listed_with_lines_and_checksums(tmp_path):
    assert not stage_ended(tmp_path)
    files = make(tmp_path)
    assert list(files) == ["beam/episodes.jsonl", "greedy/episodes.jsonl"]
    assert files["beam/episodes.jsonl"]["lines"] == 3
    assert len(files["beam/episodes.jsonl"]["sha256"]) == 64
    assert stage_ended(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 lines, and the stage left 3"),
        (lines(1, 2), "has 2 lines, and the stage left 3"),
        (lines(1, 2, 3)[:-1], "line 3: corrupt record"),
        (lines(1, 2, 3) * 2, "has 6 lines, and the stage left 3"),
        (lines(2, 1, 3), "has 3 lines, and the stage left 3 with another sha256"),
        (lines(4, 5, 6), "has 3 lines, and the stage left 3 with another sha256"),
        (lines(1, 2, 3).replace(b":2}", b":7}"), "line 2: corrupt record"),
        (None, "is missing"),
    ],
)
def test_a_file_that_is_not_as_the_stage_left_it_is_refused(tmp_path, content, message):
    make(tmp_path)
    path = tmp_path / "greedy" / "episodes.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        stage_ended(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listed", [[], {"../x": {}}, {"greedy/episodes.jsonl": 3}])
def test_a_list_of_another_form_is_refused(tmp_path, listed):
    make(tmp_path)
    with pytest.raises(UserError, match=r"stage\.json: files"):
        check_stage_files(tmp_path, {KEY: listed})


def test_a_stage_of_an_earlier_version_has_no_list(tmp_path):
    make(tmp_path)
    write_json_atomic(tmp_path / STAGE_FILE, {**RECORD, "summary": {"tasks": 3}})
    assert stage_ended(tmp_path)
