from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_lines import JsonLines, move_records, read_json_lines

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
