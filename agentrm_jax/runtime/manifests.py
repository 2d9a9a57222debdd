"""Checksums of the files of a folder: neither Orbax nor safetensors notices flipped bits.

A manifest answers two questions: whether what is read is what was written, and whether a folder
holds anything that agentrm did not write (`runtime.output_folders`).
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line, printable

FILE = "manifest.json"
_WRITER = {"written_by": "agentrm_jax"}


def write_manifest(directory: pathlib.Path) -> None:
    """Lists every file that is in the folder now, subfolders included, with its sha256."""
    listed = {name: sha256(directory / name) for name in files_of(directory) if name != FILE}
    with (directory / FILE).open("w", encoding="utf-8") as file:
        json.dump({**_WRITER, "sha256": listed}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def check_manifest(directory: pathlib.Path, only: str | None = None) -> None:
    """Compares the files of a folder with its manifest, if it has one; unlisted files are ignored.

    Args:
      directory: A folder of an older version has no manifest and is not checked.
      only: Name of the one file that is compared.

    Raises:
      UserError: A file is missing or has changed, or the manifest is damaged or of another program.
    """
    path = directory / FILE
    if not path.exists():
        return
    for name, digest in read_manifest(path).items():
        if only not in (None, name):
            continue
        shown = printable(str(directory / name))
        if not _is_file(directory / name):
            raise UserError(f"{shown}: missing, {FILE} lists it; restore the file")
        if _digest_of(directory / name) != digest:
            raise UserError(
                f"{shown}: its checksum differs from {FILE}; restore the file, or "
                f"delete {FILE} if the change was meant"
            )


def unlisted_files(directory: pathlib.Path, *, contents: bool = True) -> list[str]:
    """Returns the files of a folder that agentrm did not write, or that changed since.

    Args:
      directory: May be absent.
      contents: Whether checksums are compared; otherwise names only.

    Raises:
      UserError: The folder cannot be read.
    """
    try:
        names = list(files_of(directory))
        listed = read_manifest(directory / FILE) if FILE in names else {}
    except UserError:
        listed = {}  # the manifest of another program
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({first_line(error)})") from None
    own = FILE if listed else None
    return sorted(
        name for name in names if name != own and not _is_listed(directory, name, listed, contents)
    )


def _is_listed(
    directory: pathlib.Path, name: str, listed: Mapping[str, str], contents: bool
) -> bool:
    path = directory / name
    if name not in listed or path.is_symlink() or not path.is_file():
        return False
    return not contents or _digest_of(path) == listed[name]


def read_manifest(path: pathlib.Path) -> dict[str, str]:
    """Returns the sha256 of each file that a manifest lists, by its name in the folder.

    Raises:
      UserError: It is damaged, or was written by another program.
    """
    listed = read_json(path).get("sha256")
    if not isinstance(listed, dict) or not listed:
        raise UserError(
            f"{path}: not a list of checksums by agentrm; if another program wrote it, move it "
            "to another folder, otherwise restore it"
        )
    for name, digest in listed.items():
        parts = pathlib.PurePosixPath(name).parts
        inside = parts and parts[0] != "/" and ".." not in parts and name != FILE
        if not inside or "\0" in name or not _is_digest(digest):
            raise UserError(
                f"{path}: sha256: {name!r}: not a file of this folder with its checksum; restore "
                "the file"
            )
    return listed


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def files_of(directory: pathlib.Path) -> Iterator[str]:
    """Names of all that a folder holds except for real folders, relative to it, with slashes.

    Symbolic links are named and not followed.

    Raises:
      OSError: A folder cannot be read.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for root, folders, files in os.walk(directory, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in sorted([*files, *links]):
            yield pathlib.Path(root, name).relative_to(directory).as_posix()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object that a file of a model directory holds.

    Raises:
      UserError: There is none.
    """
    try:
        contents = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; a Hugging Face model directory has one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if not isinstance(contents, dict):
        raise UserError(f"{path}: not a JSON object")
    return contents


def sha256(path: pathlib.Path) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal.

    Raises:
      OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system
        return False


def _digest_of(path: pathlib.Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
