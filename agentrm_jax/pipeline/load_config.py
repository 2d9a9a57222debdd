"""A `RunConfig` from YAML files and overrides; its errors name key, file and line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable, shown
from agentrm_jax.core.yaml_nodes import Node, parse_yaml, read_yaml
from agentrm_jax.pipeline.config import RunConfig

_LONGEST_NUMBER = 400  # characters


def print_help(prog: str, description: str) -> None:
    """Prints the keys of `RunConfig` with their descriptions."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=f"{description}. DIR is the folder of the run.",
        usage=f"{prog} CONFIG --output DIR [--KEY=VALUE ...]",
        add_help=False,
    )
    parser.add_argument("--config", type=str, help="another YAML file, laid over CONFIG")
    parser.add_class_arguments(RunConfig, None)
    parser.print_help()


def load_config(path: pathlib.Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration of a file with overrides laid over it.

    Args:
      path: A YAML file.
      overrides: In order: `--sft.fit.length=512`, or `--config=FILE` for another file.

    Raises:
      UserError: A file is missing or not YAML; a key is unknown; a value is of another type, not
        finite or out of range. Names the key and, if a file sets it, file and line.
    """
    layers = [read_yaml(path), *(_override(key, text) for key, text in _options(overrides))]
    for layer in layers:
        _check_keys(RunConfig, layer, "")
    merged = functools.reduce(_overlaid, layers)
    return _config(RunConfig, merged, "")


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Keys and texts of `--KEY=VALUE` and `--KEY VALUE`."""
    left = iter(words)
    for word in left:
        key, equals, text = word.partition("=")
        if not key.startswith("--") or key == "--":
            raise UserError(f"unexpected argument {shown(word)}; write --KEY=VALUE")
        if not equals:
            following = next(left, None)
            if following is None or following.startswith("--"):
                raise UserError(f"{printable(key)} needs a value: {printable(key)}=VALUE")
            text = following
        yield key.removeprefix("--"), text


def _override(key: str, text: str) -> Node:
    """The layer that sets one key."""
    if key == "config":
        return read_yaml(pathlib.Path(text))
    try:
        node = parse_yaml(text, "") if text.strip() else Node(value="", tag="str", where="")
    except UserError:  # a path or a wording may begin as YAML does
        node = Node(value=text, tag="str", where="")
    if isinstance(node.value, str) and text.strip()[:1] not in ("'", '"'):
        node = dataclasses.replace(node, value=text)  # a # in it begins no comment
    for name in reversed(key.split(".")):
        node = Node(value={name: node}, tag="map", where="")
    return node


def _overlaid(base: Node, over: Node) -> Node:
    """The base with the keys of another layer in place of its own."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = _overlaid(merged[key], node) if key in merged else node
    return dataclasses.replace(base, value=merged)


def _check_keys(kind: Any, node: Node, key: str) -> None:
    """Refuses keys that a configuration does not have."""
    if (item := _item_of(kind)) is not None and isinstance(node.value, list):
        for number, inner in enumerate(node.value):
            _check_keys(item, inner, f"{key}.{number}")
    if not dataclasses.is_dataclass(kind):
        return
    if not isinstance(node.value, dict):
        raise _refused(node, key, f"must be keys and values (got {_got(node)})")
    known = _types(kind)
    for name, inner in node.value.items():
        own = f"{key}.{name}".lstrip(".")
        if name not in known:
            near = difflib.get_close_matches(name[:60], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}"
            where = f"{inner.where}: " if inner.where else ""
            raise UserError(f"{where}unknown key {printable(own)[:100]}; {hint}")
        _check_keys(known[name], inner, own)


def _config(kind: Any, node: Node, key: str) -> Any:
    """Builds a configuration from its values; absent keys have their defaults."""
    assert isinstance(node.value, dict)  # `_check_keys` has looked
    known = _types(kind)
    values = {
        name: _value(known[name], inner, f"{key}.{name}".lstrip("."))
        for name, inner in node.value.items()
    }
    for field in dataclasses.fields(kind):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise _refused(node, f"{key}.{field.name}".lstrip("."), "is missing")
    try:
        return kind(**values)
    except UserError as error:
        if error.field is None:
            raise
        at = _deepest(node, error.field)
        raise _refused(at, f"{key}.{error.field}".lstrip("."), error.reason) from None


def _deepest(node: Node, field: str) -> Node:
    """The node that sets a field, or that of the section in which the field has its default."""
    for name in field.split("."):
        inner = node.value.get(name) if isinstance(node.value, dict) else None
        if inner is None:
            break
        node = inner
    return node


def _value(kind: Any, node: Node, key: str) -> Any:
    """The value of a field of this type."""
    options = typing.get_args(kind)
    if types.NoneType in options:
        if node.tag == "null":
            return None
        return _value(next(o for o in options if o is not types.NoneType), node, key)
    if dataclasses.is_dataclass(kind):
        return _config(kind, node, key)
    if typing.get_origin(kind) is typing.Literal:
        if node.value not in options:
            raise _refused(node, key, f"must be one of {', '.join(options)} (got {_got(node)})")
        return node.value
    if (item := _item_of(kind)) is not None:
        if not isinstance(node.value, list):
            raise _refused(node, key, f"must be a list, such as [a, b] (got {_got(node)})")
        return tuple(_value(item, one, f"{key}.{i}") for i, one in enumerate(node.value))
    return _scalar(kind, node, key)


def _scalar(kind: Any, node: Node, key: str) -> bool | int | float | str:
    text, words = node.value, yaml.SafeLoader.bool_values
    if isinstance(text, str) and node.tag != "null":
        if kind is str:
            if node.tag in ("str", "timestamp") or not node.where:
                return text
            raise _refused(node, key, f"must be text; write it in quotes (got {_got(node)})")
        if kind is bool and text.lower() in words:
            return words[text.lower()]
        if kind is int and (whole := _number(text, lambda t: int(t, 0))) is not None:
            return whole
        if kind is float:
            if text.lower().lstrip("+-.") in ("nan", "inf", "infinity"):
                raise _refused(node, key, f"must be a finite number (got {_got(node)})")
            if (number := _number(text, float)) is not None:
                return number
    expected = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise _refused(node, key, f"must be {expected} (got {_got(node)})")


def _number(text: str, read: typing.Callable[[str], Any]) -> Any:
    """The number of a text, None if it is none."""
    if not text.isascii() or len(text) > _LONGEST_NUMBER:
        return None
    try:
        return read(text)
    except ValueError:
        return None


def _item_of(kind: Any) -> Any:
    """The type of the items of a list, None if the type is no list."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) in (tuple, Sequence) else None


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _got(node: Node) -> str:
    if isinstance(node.value, str):
        return "nothing" if node.tag == "null" and not node.value else shown(node.value)
    return "a list" if isinstance(node.value, list) else "keys and values"


def _refused(node: Node, key: str, reason: str) -> UserError:
    where = f"{node.where}: " if node.where else ""
    return UserError(f"{where}{key} {reason}")
