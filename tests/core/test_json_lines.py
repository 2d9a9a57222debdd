from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_lines import JsonLines, read_json_lines

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
