"""Checksums of a model directory's files: neither Orbax nor safetensors notices flipped bytes."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from agentrm_jax.core.errors import UserError

_FILE = "manifest.json"


def write_manifest(directory: pathlib.Path) -> None:
    """Lists every file that is there now, subfolders included."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    manifest = {"sha256": {name: _sha256(directory / name) for name in names}}
    (directory / _FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def check_manifest(directory: pathlib.Path, only: str | None = None) -> None:
    """Compares the files with the manifest, where there is one; others may lie beside them.

    Args:
      only: The one file to look at.

    Raises:
      UserError: A file is missing or has changed.
    """
    path = directory / _FILE
    if not path.exists():
        return
    listed = read_json(path).get("sha256")
    if not isinstance(listed, dict):
        raise UserError(f"{path}: sha256: missing")
    for name, digest in listed.items():
        if only not in (None, name):
            continue
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: missing, {_FILE} lists it")
        if _sha256(directory / name) != digest:
            raise UserError(
                f"{directory / name}: its checksum differs from {_FILE}; restore the file, or "
                f"delete {_FILE} if the change was meant"
            )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object of a model directory's file.

    Raises:
      UserError: There is none.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; a Hugging Face model directory has one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(contents, dict):
        raise UserError(f"{path}: not a JSON object")
    return contents


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
