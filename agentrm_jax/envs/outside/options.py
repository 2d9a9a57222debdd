"""Options of environments from a configuration: plain values are checked and become records."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from agentrm_jax.core.errors import UserError, section
from agentrm_jax.core.text import printable, shown

T = TypeVar("T")

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def read_options(kind: type[T], given: Mapping[str, Any], key: str = "options") -> T:
    """Returns a record of options.

    Args:
      kind: A dataclass whose fields are texts, numbers, flags, mappings, lists and dataclasses.
      given: Its fields by name, as plain JSON values.
      key: The key that holds them, for error messages.

    Raises:
      UserError: A key is unknown or missing, or a value is of another type; names the key.
    """
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:60], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}"
            raise UserError(f"is unknown; {hint}", field=f"{key}.{printable(str(name))[:60]}")
    for field in fields:
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise UserError("is missing", field=f"{key}.{field.name}")
    values = {name: _value(hints[name], value, f"{key}.{name}") for name, value in given.items()}
    with section(key):
        return kind(**values)


def _value(kind: Any, value: Any, key: str) -> Any:
    options = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(each for each in options if each is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(field=key, value=value, expected="keys and values")
        return read_options(kind, value, key)  # type: ignore[arg-type]
    if kind is Any or typing.get_origin(kind) is typing.Literal:
        return value
    if typing.get_origin(kind) in (dict, Mapping, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise UserError(field=key, value=value, expected="keys and values")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = _NAMES.get(kind, str(kind))
        raise UserError(f"must be {expected} (got {shown(value)})", field=key)
    return value
