"""JSON files that are whole or absent, and errors that name the file."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.core.text import shown
from agentrm_jax.runtime.output_folders import new_file


def write_text_atomic(path: pathlib.Path, text: str) -> None:
    """Writes a file that is never seen half written; folders are made as needed."""
    with naming(path), new_file(path) as file:
        file.write(text)


def write_json_atomic(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is never seen half written; folders are made as needed.

    Raises:
      UserError: The value holds a number that is not finite, or is nested too deep.
    """
    try:
        text = json_text(value, indent=2)
    except ValueError as error:
        raise UserError(f"{path}: cannot be written ({error})") from None
    write_text_atomic(path, text + "\n")


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Adds the file's name to errors of the system, such as a full disk, that name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_json(path: pathlib.Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
      UserError: The file is absent or no regular file, is not JSON, or exceeds the bounds of
        `parse_json`; names file and line.
    """
    require_regular(path)
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); restore or delete the file"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore or delete the file") from None


def require_regular(path: pathlib.Path) -> None:
    """Refuses a pipe or a device in place of a file: reading it may never end.

    Raises:
      UserError: It is one. An absent file or a folder is left to who opens it.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: not a regular file; restore or delete it")


def read_record(path: pathlib.Path, **kinds: Any) -> dict[str, Any]:
    """Returns the JSON object of a file.

    Args:
      path: The file.
      kinds: The type, as for `isinstance`, that each of these keys must have.

    Raises:
      UserError: See `read_json`; or it is no object, or lacks a key, or one has another type.
    """
    return _checked(path, read_json(path), kinds)


def read_rows(path: pathlib.Path, **kinds: Any) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file that holds a list of them; none if it is absent.

    Args:
      path: The file.
      kinds: As of `read_record`, of each object.

    Raises:
      UserError: See `read_record`.
    """
    rows = read_json(path) if path.exists() else []
    if not isinstance(rows, list):
        raise UserError(f"{path}: must be a list of JSON objects; restore or delete the file")
    return [_checked(path, row, kinds) for row in rows]


def same_settings(path: pathlib.Path, settings: Mapping[str, Any], noun: str) -> bool:
    """Returns whether a file of settings is there; compares it then.

    Args:
      path: The file, in the folder that was made with the settings.
      settings: The settings of this call, plain JSON values.
      noun: What was made with the settings, for the error.

    Raises:
      UserError: The file is damaged, or a setting differs.
    """
    if not path.exists():
        return False
    stored = read_record(path)
    for name, value in settings.items():
        if (old := stored.get(name)) != value:
            short = all(isinstance(v, int | float) or len(str(v)) <= 40 for v in (old, value))
            other = f"{name} = {shown(old)} (got {shown(value)})" if short else f"other {name}"
            raise UserError(
                f"{path.parent}: holds {noun} with {other}; choose another folder, or delete it"
            )
    return True


def _checked(path: pathlib.Path, value: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold JSON objects; restore or delete the file")
    for key, kind in kinds.items():
        found = value.get(key)
        if key not in value or not isinstance(found, kind) or isinstance(found, bool):
            raise UserError(f"{path}: {key} is missing or has another type; restore the file")
    return value
