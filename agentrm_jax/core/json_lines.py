"""Append-only files of JSON records that survive being killed at any moment.

One line for each record, with a checksum: `{"crc32":"0a1b2c3d","record":{...}}`. A last line that
was torn by a kill is cut off when the file is opened again; damage anywhere else is an error that
names file and line.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from agentrm_jax.core.errors import UserError


def _encode(record: Any) -> bytes:
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    crc = zlib.crc32(text.encode())
    return f'{{"crc32":"{crc:08x}","record":{text}}}\n'.encode()


def _decode(line: bytes) -> Any:
    """The record of a whole line.

    Raises:
      ValueError: The line is damaged.
    """
    head, record, tail = line[:10], line[29:-2], line[18:29] + line[-2:]
    if head != b'{"crc32":"' or tail != b'","record":}\n':
        raise ValueError("no record")
    if int(line[10:18], 16) != zlib.crc32(record):
        raise ValueError("checksum differs")
    return json.loads(record)


def _records(path: pathlib.Path) -> Iterator[tuple[Any, bytes]]:
    """Each sound record and its line; stops before a torn last line."""
    size, end = path.stat().st_size, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if end + len(line) == size and not line.endswith(b"\n"):
                return
            try:
                record = _decode(line)
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: corrupt record ({error}); restore the file, or delete "
                    "it to make it again"
                ) from None
            end += len(line)
            yield record, line


def move_records(sources: Iterable[pathlib.Path], path: pathlib.Path) -> None:
    """Appends what the sources hold to a file, but for records that it has, and deletes them.

    Where this is interrupted, it can be done again.
    """
    sources = sorted(sources)
    if not sources:
        return
    there: set[bytes] = set()
    merged = path.with_name(f".{path.name}.tmp")
    with merged.open("wb") as file:
        for source in [path, *sources] if path.exists() else sources:
            for _, line in _records(source):
                digest = hashlib.blake2b(line, digest_size=16).digest()
                if digest not in there:
                    there.add(digest)
                    file.write(line)
        file.flush()
        os.fsync(file.fileno())
    merged.replace(path)
    for source in sources:
        source.unlink()


def read_json_lines(path: pathlib.Path) -> Iterator[Any]:
    """The records of a file, none where it is absent."""
    if path.exists():
        for record, _ in _records(path):
            yield record


class JsonLines:
    """A file open for appending; each record is handed to the system as it is appended."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.truncate(path, sum(len(line) for _, line in _records(path)))
        self._file = path.open("ab", buffering=0)

    def append(self, record: Any) -> None:
        left = memoryview(_encode(record))
        while left:  # a full disk or a signal may cut a write short
            left = left[self._file.write(left) or 0 :]

    def sync(self) -> None:
        """Waits until what was appended is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
