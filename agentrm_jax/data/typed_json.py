"""Frozen records from JSON values whose types are checked, field by field."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from agentrm_jax.core.text import admit_text, printable

T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def from_json(kind: type[T], value: Any) -> T:
    """Returns a dataclass or a `TypedDict` from the JSON object of its fields.

    Args:
      kind: Its class, with fields of type `str`, `int`, `float`, `bool`, `tuple[X, ...]`,
        `list[X]`, a mapping, a literal, another such class, or one of these or None.
      value: A JSON value.

    Raises:
      ValueError: A field is missing, unknown or of another type; one line that names it.
    """
    return _record(kind, value, "")


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether it must be given."""
    hints = typing.get_type_hints(kind)
    if typing.is_typeddict(kind):
        return {name: (hint, name in kind.__required_keys__) for name, hint in hints.items()}
    return {
        field.name: (
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    }


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mistake(where or "the record", "an object", value)
    fields = _fields(kind)
    if unknown := next((key for key in value if key not in fields), None):
        raise ValueError(f"{_below(where, printable(unknown)[:40])}: unknown key")
    found = {}
    for name, (hint, required) in fields.items():
        if name in value:
            found[name] = _value(hint, value[name], _below(where, name))
        elif required:
            raise ValueError(f"{_below(where, name)}: is missing")
    return kind(**found)


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        [hint] = [each for each in inner if each is not type(None)]
        return _value(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mistake(where, "a list", value)
        if inner[0] in _NAMES:  # token ids are many
            return tuple(_plain(inner[0], each, where) for each in value)
        return tuple(_value(inner[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is list:
        return list(_value(tuple[inner[0], ...], value, where))
    if origin is typing.Literal:
        if value not in inner:
            raise _mistake(where, " or ".join(map(str, inner)), value)
        return value
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _mistake(where, "an object", value)
        return value
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _record(hint, value, where)
    return _plain(hint, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _mistake(where, "a number", value) from None
    if type(value) is not kind:
        raise _mistake(where, _NAMES[kind], value)
    return value


def _mistake(where: str, what: str, value: Any) -> ValueError:
    text = printable(admit_text(str(value), 1000))
    return ValueError(f"{where}: must be {what} (got {text[:40]})")
