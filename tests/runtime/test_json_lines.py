from __future__ import annotations

import errno
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import admit_text
from agentrm_jax.runtime import json_lines
from agentrm_jax.runtime.json_lines import JsonLines, move_records, read_json_lines

RECORDS = [{"a": 1}, {"text": 'quotes " and }}\n and ü'}, {"list": [1.5, None, "x"]}]


def write(path, records):
    with JsonLines(path) as lines:
        for record in records:
            lines.append(record)


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS[:1])
    write(path, RECORDS[1:])
    assert list(read_json_lines(path)) == RECORDS
    assert list(read_json_lines(tmp_path / "absent.jsonl")) == []


@given(st.data())
def test_a_file_cut_anywhere_loses_the_torn_record_only(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    write(path, RECORDS)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = RECORDS[: sum(end <= cut for end in ends)]
    assert list(read_json_lines(path)) == kept
    write(path, [{"new": True}])
    assert list(read_json_lines(path)) == [*kept, {"new": True}]


def test_a_torn_end_is_cut_off_and_said_in_one_line(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS)
    write(path, [])
    assert capsys.readouterr().err == ""
    path.write_bytes(path.read_bytes()[:-4])
    write(path, RECORDS[2:])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"agentrm: {path}: its last record was torn and is cut off (")
    assert list(read_json_lines(path, finished=True)) == RECORDS


def test_damage_elsewhere_names_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS)
    path.write_bytes(path.read_bytes().replace(b"quotes", b"quoted"))
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: corrupt record \(checksum differs\)"):
        list(read_json_lines(path))
    with pytest.raises(UserError, match="line 2"):
        JsonLines(path)


def test_records_of_parts_are_moved_once(tmp_path):
    """A last line is torn; what a move that was interrupted had moved comes again."""
    path, first, second = (
        tmp_path / name for name in ("a.jsonl", "a.part0.jsonl", "a.part1.jsonl")
    )
    write(path, RECORDS[:1])
    write(first, RECORDS[:2])
    write(second, RECORDS[2:])
    with second.open("ab") as file:
        file.write(b'{"crc32":"')
    move_records([second, first], path)
    assert list(read_json_lines(path)) == RECORDS
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    write(first, [{"b": 2}])
    move_records([first], path)
    assert list(read_json_lines(path)) == [*RECORDS, {"b": 2}]
    move_records([], tmp_path / "none.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_damaged_part_is_named_and_kept(tmp_path):
    path, part = tmp_path / "a.jsonl", tmp_path / "a.part0.jsonl"
    write(path, RECORDS[:1])
    write(part, RECORDS[1:])
    part.write_bytes(part.read_bytes().replace(b"quotes", b"Quotes"))
    with pytest.raises(UserError, match=r"a\.part0\.jsonl, line 1: corrupt record"):
        move_records([part], path)
    assert part.exists()
    assert list(read_json_lines(path)) == RECORDS[:1]


def test_a_torn_end_of_a_finished_file_is_damage(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS)
    assert list(read_json_lines(path, finished=True)) == RECORDS
    path.write_bytes(path.read_bytes()[:-1])
    assert list(read_json_lines(path)) == RECORDS[:2]
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: corrupt record \(its end is missing\)"):
        list(read_json_lines(path, finished=True))
    path.unlink()
    assert list(read_json_lines(path)) == []
    with pytest.raises(UserError, match=r"a\.jsonl: no such file"):
        list(read_json_lines(path, finished=True))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"reward": float("nan")}, "not JSON compliant"),
        ({"reward": [1.0, float("-inf")]}, "not JSON compliant"),
        (nested(101), "nested more than 100 levels deep"),
        (nested(50_000), "nested more than 100 levels deep"),
    ],
)
def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path, record, reason):
    path = tmp_path / "a.jsonl"
    with JsonLines(path) as lines:
        lines.append(RECORDS[0])
        with pytest.raises(UserError, match=rf"a\.jsonl: a record cannot be written \(.*{reason}"):
            lines.append(record)
        lines.append(RECORDS[1])
    assert list(read_json_lines(path, finished=True)) == RECORDS[:2]


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_written_as_valid_unicode(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    write(path, [{"text": text}])
    assert list(read_json_lines(path, finished=True)) == [{"text": admit_text(text)}]


def line_of(record: bytes) -> bytes:
    return b'{"crc32":"%08x","record":%b}\n' % (zlib.crc32(record), record)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 100 levels deep"),
        (b"9" * 5_000, "Exceeds the limit"),
        (b"NaN", "not a finite number"),
        (b"1e999", "not a finite number"),
        (b'"\xff"', "utf-8"),
        (b"{]", "Expecting"),
    ],
)
def test_hostile_records_with_a_right_checksum_name_file_and_line(tmp_path, record, reason):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS[:1])
    with path.open("ab") as file:
        file.write(line_of(record))
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: corrupt record \(.*{reason}") as error:
        list(read_json_lines(path))
    assert len(str(error.value).splitlines()) == 1


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: corrupt record"):
        list(read_json_lines(path))
    with (
        JsonLines(tmp_path / "b.jsonl") as lines,
        pytest.raises(UserError, match=r"larger than 1,000 bytes"),
    ):
        lines.append("x" * 1000)


def test_a_write_that_fails_half_way_leaves_the_file_whole_and_is_named(tmp_path):
    class Full:
        def __init__(self, file):
            self.file = file

        def fileno(self):
            return self.file.fileno()

        def write(self, data):
            self.file.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.jsonl"
    lines = JsonLines(path)
    lines.append(RECORDS[0])
    sound = lines._file
    lines._file = Full(sound)
    with pytest.raises(OSError, match="No space left") as error:
        lines.append(RECORDS[1])
    assert error.value.filename == str(path)
    lines._file = sound
    lines.append(RECORDS[2])
    lines.close()
    assert list(read_json_lines(path, finished=True)) == [RECORDS[0], RECORDS[2]]
