"""Scalars of a configuration file: text, numbers, true and false; the errors that refuse them."""

from __future__ import annotations

import typing
from typing import Any

import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown
from agentrm_jax.core.yaml_nodes import Node

_LONGEST_NUMBER = 400  # characters


def refused(node: Node, key: str, reason: str) -> UserError:
    """Returns the error about a key, with file and line of its node."""
    return UserError(reason, field=key).located(key, node.where)


def got(node: Node) -> str:
    """Returns the value of a node as errors show it."""
    if isinstance(node.value, str):
        return "nothing" if node.tag == "null" and not node.value else shown(node.value)
    return "a list" if isinstance(node.value, list) else "keys and values"


def scalar(kind: Any, node: Node, key: str) -> bool | int | float | str:
    """Returns the value of a node as text, number, or true or false.

    Args:
      kind: `str`, `int`, `float` or `bool`.
      node: The node.
      key: Its full key.

    Raises:
      UserError: It is of another kind.
    """
    text, words = node.value, yaml.SafeLoader.bool_values
    if isinstance(text, str) and node.tag != "null":
        if kind is str:
            if node.tag in ("str", "timestamp") or not node.where:
                return text
            raise refused(node, key, f"must be text; write it in quotes (got {got(node)})")
        if kind is bool and text.lower() in words:
            return words[text.lower()]
        if kind is int and (whole := _number(text, lambda t: int(t, 0))) is not None:
            return whole
        if kind is float:
            if text.lower().lstrip("+-.") in ("nan", "inf", "infinity"):
                raise refused(node, key, f"must be a finite number (got {got(node)})")
            if (number := _number(text, float)) is not None:
                return number
    expected = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise refused(node, key, f"must be {expected} (got {got(node)})")


def free_value(node: Node) -> Any:
    """Returns a node of a section that holds any keys as plain JSON values."""
    if isinstance(node.value, dict):
        return {key: free_value(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [free_value(inner) for inner in node.value]
    if node.tag == "null":
        return None
    kind = {"bool": bool, "int": int, "float": float}.get(node.tag)
    return node.value if kind is None else scalar(kind, node, "options")


def _number(text: str, read: typing.Callable[[str], Any]) -> Any:
    """The number of a text, None if it is none."""
    if not text.isascii() or len(text) > _LONGEST_NUMBER:
        return None
    try:
        return read(text)
    except ValueError:
        return None
