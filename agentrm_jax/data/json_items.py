"""Files of items from outside: a JSON list, one JSON object, or an object on each line."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json


def read_items(path: pathlib.Path) -> list[Any]:
    """Returns the items of a file.

    Args:
      path: A JSON file, whose value is a list of items or one item, or a file of JSON lines.

    Raises:
      UserError: The file is missing, cannot be read, is not JSON, or holds no item.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    items = _items(path, text)
    if not items:
        raise UserError(f"{path}: holds no item")
    return items


def _items(path: pathlib.Path, text: str) -> list[Any]:
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return [
                _line(path, number, line)
                for number, line in enumerate(text.split("\n"), start=1)
                if line.strip()
            ]
        raise UserError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise UserError(f"{path}: must be a list of items, each with `conversations`")
    return value


def _line(path: pathlib.Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number}: not JSON: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{path}: line {number}: not JSON: {error}") from error
