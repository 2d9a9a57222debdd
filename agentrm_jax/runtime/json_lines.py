"""Append-only files of JSON records that survive being killed at any moment.

One line for each record, with a checksum: `{"crc32":"0a1b2c3d","record":{...}}`. A last line that
was torn by a kill is cut off when the file is opened again; damage anywhere else, and a torn line
in a file that was finished, is an error that names file and line.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.runtime.json_files import require_regular

MAX_LINE = 1 << 28
"""Most bytes of a line: no damaged file makes a reader take more memory."""


def _encode(record: Any) -> bytes:
    """Returns the line of a record.

    Raises:
      ValueError: The record could not be read again.
    """
    text = json_text(record, separators=(",", ":")).encode()
    line = b'{"crc32":"%08x","record":%b}\n' % (zlib.crc32(text), text)
    if len(line) > MAX_LINE:
        raise ValueError(f"larger than {MAX_LINE:,} bytes")
    return line


def _decode(line: bytes) -> Any:
    """Returns the record of a whole line.

    Raises:
      ValueError: The line is damaged.
    """
    head, record, tail = line[:10], line[29:-2], line[18:29] + line[-2:]
    if head != b'{"crc32":"' or tail != b'","record":}\n':
        raise ValueError("no record")
    if int(line[10:18], 16) != zlib.crc32(record):
        raise ValueError("checksum differs")
    return parse_json(record)


def _records(path: pathlib.Path, finished: bool = False) -> Iterator[tuple[Any, bytes]]:
    """Yields each sound record and its line; a torn last line is damage in a finished file only."""
    require_regular(path)
    size, end = path.stat().st_size, 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            torn = end + len(line) == size and not line.endswith(b"\n")
            if torn and not finished:
                return
            try:
                if torn:
                    raise ValueError("its end is missing")
                record = _decode(line)
            except ValueError as error:
                whole = "its folder" if finished else "it"
                raise UserError(
                    f"{path}, line {number}: corrupt record ({error}); restore the file, or delete "
                    f"{whole} to make it again"
                ) from None
            end += len(line)
            yield record, line


def move_records(sources: Iterable[pathlib.Path], path: pathlib.Path) -> None:
    """Appends what the sources hold to a file, except for records that it has, and deletes them.

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


def read_json_lines(path: pathlib.Path, finished: bool = False) -> Iterator[Any]:
    """Yields the records of a file, none if the file is absent.

    Args:
      path: The file.
      finished: Whether its writer has ended. A torn last line is then damage, and so is an absent
        file.

    Raises:
      UserError: A line is damaged, or the file of a finished writer is absent; names file and line.
    """
    if path.exists():
        for record, _ in _records(path, finished):
            yield record
    elif finished:
        raise UserError(f"{path}: no such file; restore it, or delete its folder to make it again")


def sound_lines(path: pathlib.Path) -> Iterator[tuple[Any, bytes]]:
    """Yields each record of a file with its line; a torn last line is left out.

    Raises:
      UserError: A line is damaged; names file and line.
    """
    return _records(path)


class JsonLines:
    """A file open for appending; each record is handed to the system as it is appended.

    If its last line is torn, that is cut off and printed as one line on stderr.

    Args:
      path: The file.
      make_folder: Whether its folder is made if it is absent.

    Raises:
      UserError: A line before the last one is damaged.
    """

    def __init__(self, path: pathlib.Path, *, make_folder: bool = True) -> None:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            sound = sum(len(line) for _, line in _records(path))
            if torn := path.stat().st_size - sound:
                os.truncate(path, sound)
                print(
                    f"agentrm: {path}: its last record was torn and is cut off ({torn:,} bytes); "
                    "it is made again",
                    file=sys.stderr,
                )
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, record: Any) -> None:
        """Writes a record; a file that cannot take all of it is left as it was.

        Raises:
          UserError: The record holds a number that is not finite, is nested too deep or too large.
          OSError: The disk is full, or the like; names the file.
        """
        try:
            left = memoryview(_encode(record))
        except ValueError as error:
            raise UserError(f"{self._path}: a record cannot be written ({error})") from None
        size = os.fstat(self._file.fileno()).st_size
        try:
            while left:  # a full disk or a signal may cut a write short
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

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


class FollowedLines:
    """Reads what a writer appends to a file, from where the last look ended.

    For views of files that are being written: a line that is torn or damaged ends the look, and is
    tried again at the next one.

    Args:
      path: The file; it may be absent for now.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> Iterator[Any]:
        """Yields the records that were appended since the last look."""
        try:
            require_regular(self._path)
            file = self._path.open("rb")
        except (OSError, UserError):
            return
        with file:
            if os.fstat(file.fileno()).st_size < self._offset:
                self._offset = 0  # it was made again
            file.seek(self._offset)
            for line in iter(lambda: file.readline(MAX_LINE + 1), b""):
                try:
                    record = _decode(line)
                except ValueError:
                    return
                self._offset += len(line)
                yield record
