"""The files of a finished stage: the number of lines and the sha256 of each JSON file.

The list is part of the stage's summary. Whoever reads a finished stage compares its files first:
checksums of single records do not notice records that are missing, doubled or from elsewhere.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line
from agentrm_jax.runtime.json_lines import read_json_lines
from agentrm_jax.runtime.manifests import sha256
from agentrm_jax.runtime.run_directory import SECONDS_FILE, STAGE_FILE, read_stage_record

KEY = "files"


class FileRecord(TypedDict):
    """The entry of one file in a stage's summary.

    Attributes:
      lines: Number of its lines.
      sha256: Its sha256.
    """

    lines: int
    sha256: str


def stage_files(directory: pathlib.Path) -> dict[str, FileRecord]:
    """Returns `lines` and `sha256` of the JSON files in a stage's folder, by relative name."""
    found: dict[str, FileRecord] = {}
    for path in sorted([*directory.rglob("*.json"), *directory.rglob("*.jsonl")]):
        name = path.relative_to(directory).as_posix()
        if not name.startswith(".") and name not in (STAGE_FILE, SECONDS_FILE):
            found[name] = {"lines": _lines(path), "sha256": sha256(path)}
    return found


def stage_ended(directory: pathlib.Path) -> bool:
    """Returns whether the stage of a folder has ended; compares its files then.

    Raises:
      UserError: A file is missing, or is not as the stage left it. A stage of an earlier version
        has no list of files, and they are not compared.
    """
    if not (directory / STAGE_FILE).exists():
        return False
    record = read_stage_record(directory / STAGE_FILE)
    check_stage_files(directory, record["summary"])
    return True


def check_stage_files(directory: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Compares the files of a stage with its summary.

    Raises:
      UserError: See `stage_ended`.
    """
    listed = summary.get(KEY, {})
    mend = f"restore it, or delete {directory} to run the stage again"
    if not isinstance(listed, dict):
        raise UserError(f"{directory / STAGE_FILE}: {KEY} must be an object; restore the file")
    for name, wanted in listed.items():
        path = directory / name
        if ".." in pathlib.PurePosixPath(name).parts or not isinstance(wanted, dict):
            raise UserError(f"{directory / STAGE_FILE}: {KEY}: no list of files; restore the file")
        if not path.is_file():
            raise UserError(f"{path}: is missing; {mend}")
        try:
            if sha256(path) != wanted.get("sha256"):
                if path.suffix == ".jsonl":  # a damaged line is named by its number
                    collections.deque(read_json_lines(path, finished=True), maxlen=0)
                raise UserError(
                    f"{path}: has {_lines(path)} lines, and the stage left {wanted.get('lines')} "
                    f"with another sha256; {mend}"
                )
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from None


def _lines(path: pathlib.Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
