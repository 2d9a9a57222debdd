"""Files of records that are cut, flipped, filled with zeros or mixed: nothing wrong is read."""

from __future__ import annotations

import json
import pathlib
import random
import re
from typing import Any

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.json_lines import FollowedLines, JsonLines, read_json_lines

CASES = pytest.mark.parametrize("cases", [400, pytest.param(10_000, marks=pytest.mark.slow)])
RECORDS = [
    {"number": number, "text": f"a \u00fc {number} " * (number % 7), "values": [0.5, None, True]}
    for number in range(12)
]


def written(path: pathlib.Path) -> bytes:
    with JsonLines(path) as lines:
        for record in RECORDS:
            lines.append(record)
    return path.read_bytes()


def line_ends(content: bytes) -> list[int]:
    return [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]


def damage(rng: random.Random, content: bytes) -> tuple[bytes, int]:
    """Returns damaged content, and the first byte that is another one."""
    at = rng.randrange(len(content))
    kind = rng.randrange(5)
    if kind == 0:  # cut, as a kill or a full disk does
        return content[:at], at
    if kind == 1:  # one bit
        return content[:at] + bytes((content[at] ^ 1 << rng.randrange(8),)) + content[at + 1 :], at
    if kind == 2:  # a block that a power failure left empty, up to the end
        return content[:at] + bytes(len(content) - at), at
    if kind == 3:  # such a block in the middle
        end = min(len(content), at + rng.randrange(1, 200))
        return content[:at] + bytes(end - at) + content[end:], at
    random_bytes = rng.randbytes(rng.randrange(1, 20))
    return content[:at] + random_bytes + content[at:], at


def read_until_damage(path: pathlib.Path, finished: bool) -> tuple[list[Any], str]:
    """Returns the records before the damage, and the message about it, empty if there is none."""
    read: list[Any] = []
    try:
        read.extend(read_json_lines(path, finished))
    except UserError as error:
        return read, str(error)
    return read, ""


@CASES
@pytest.mark.parametrize("finished", [False, True])
def test_nothing_wrong_is_read_and_the_line_is_named(tmp_path, cases, finished):
    """What is read is a prefix of what was written, up to the damage at least."""
    path, rng, named = tmp_path / "a.jsonl", random.Random(1), 0
    content = written(path)
    ends = line_ends(content)
    for _ in range(cases // 2):
        changed, at = damage(rng, content)
        path.write_bytes(changed)
        whole = sum(end <= at for end in ends)
        read, message = read_until_damage(path, finished)
        if message:
            named += 1
            found = re.match(rf"{re.escape(str(path))}, line (\d+): corrupt record", message)
            assert found, message
            assert int(found[1]) == len(read) + 1
        # A byte may come again where one was put in: the record after it is then the same.
        assert read == RECORDS[: len(read)]
        assert len(read) >= whole
    assert named > cases / 20


@CASES
def test_a_torn_end_is_repaired_and_all_that_follows_is_read(tmp_path, cases):
    path, rng = tmp_path / "a.jsonl", random.Random(2)
    content = written(path)
    ends = line_ends(content)
    for _ in range(cases // 4):
        at = rng.randrange(len(content))
        zeros = bytes(rng.choice((0, 0, rng.randrange(1, 5000))))
        path.write_bytes(content[:at] + zeros)
        whole = sum(end <= at for end in ends)
        with JsonLines(path) as lines:
            for record in RECORDS[whole:]:
                lines.append(record)
        assert path.read_bytes() == content
        assert list(read_json_lines(path, finished=True)) == RECORDS


@CASES
def test_a_view_of_a_growing_file_reads_no_damage(tmp_path, cases):
    path, rng = tmp_path / "a.jsonl", random.Random(3)
    content = written(path)
    for _ in range(cases // 4):
        changed, _ = damage(rng, content)
        path.write_bytes(changed)
        read = list(FollowedLines(path).new())
        assert read == RECORDS[: len(read)]


def test_files_of_earlier_versions_are_read(tmp_path):
    """The form of a line has not changed: these bytes were written by version 0.1.0."""
    path = tmp_path / "a.jsonl"
    line = b'{"crc32":"909390f5","record":{"kind":"finish","task_id":"maze/1","error":null}}\n'
    path.write_bytes(line)
    [record] = read_json_lines(path, finished=True)
    assert record == {"kind": "finish", "task_id": "maze/1", "error": None}
    path.unlink()
    with JsonLines(path) as lines:
        lines.append(record)
    assert path.read_bytes() == line
    assert json.loads(line)["record"] == record
