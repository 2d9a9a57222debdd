"""YAML from outside as a bounded tree in which every value has its file and line."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable

MAX_BYTES = 1 << 18
MAX_DEPTH = 20
MAX_VALUES = 10_000
"""Bounds of a configuration; the shipped ones stay far below."""

_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A value and where it was written.

    Attributes:
      value: The text of a scalar, the items of a list, or the values by key.
      tag: The kind of scalar that YAML takes the text for (`null`, `int`, ...), `seq` or `map`.
      where: The file and the line of the value's key; empty for the command line.
    """

    value: str | list[Node] | dict[str, Node]
    tag: str
    where: str

    @property
    def plain(self) -> Any:
        """The value without tags and places; scalars are texts."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value


def read_yaml(path: pathlib.Path) -> Node:
    """Returns the keys and values of a YAML file; none of an empty one.

    Raises:
      UserError: The file is missing, too large, not YAML, or holds more than a configuration can;
        names file and line.
    """
    name = printable(str(path))
    try:
        with path.open("rb") as file:  # once, and no more than is allowed: it may be a pipe
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{name}: cannot be read ({reason})") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: a configuration has at most {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name}: not text in UTF-8; save it as UTF-8") from None
    node = parse_yaml(text, name)
    if not isinstance(node.value, dict):
        raise UserError(f"{name}, line 1: expected keys and values, such as `seed: 1`")
    return node


def parse_yaml(text: str, name: str) -> Node:
    """Returns the tree of a YAML text.

    Args:
      text: The text.
      name: The file's name; empty for the command line.

    Raises:
      UserError: It is not YAML, is too large or nested too deep, repeats a key, or uses tags or
        merge keys; names file and line.
    """
    try:
        _require_small(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise _refused(name, line, f"not YAML ({printable(str(error.problem))})") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refused(name, line, f"not YAML (character {error.character:#x})") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _refused(name, 1, f"not YAML ({first_line(error)})") from None
    if root is None:
        return Node(value={}, tag="map", where=_where(name, 1))
    return _Reader(name).node(root, root.start_mark.line + 1, 0)


def _require_small(text: str, name: str) -> None:
    """Refuses a text whose depth would exhaust the stack of `yaml.compose`; parsing needs none."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refused(name, line, f"nested more than {MAX_DEPTH} levels deep")
        if number > MAX_VALUES:
            raise _refused(name, line, f"more than {MAX_VALUES:,} keys and values")


class _Reader:
    """Turns PyYAML's nodes into ours; counts them, as aliases can multiply a small text."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def node(self, node: Any, line: int, depth: int) -> Node:
        self._count += 1
        if depth > MAX_DEPTH:
            raise _refused(self._name, line, f"nested more than {MAX_DEPTH} levels deep")
        if self._count > MAX_VALUES:
            raise _refused(self._name, line, f"more than {MAX_VALUES:,} keys and values")
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag not in _TAGS:
            raise _refused(self._name, line, f"the tag {printable(tag)[:60]} is not read")
        where = _where(self._name, line)
        if isinstance(node, yaml.MappingNode):
            return Node(value=dict(self._items(node, depth)), tag="map", where=where)
        if isinstance(node, yaml.SequenceNode):
            items = [self.node(item, item.start_mark.line + 1, depth + 1) for item in node.value]
            return Node(value=items, tag="seq", where=where)
        return Node(value=node.value, tag="str" if node.style else tag, where=where)

    def _items(self, node: Any, depth: int) -> Iterator[tuple[str, Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(self._name, line, "a key must be a name, not a list or a mapping")
            if key.value == "<<":
                raise _refused(self._name, line, "merge keys (<<) are not read; write the keys out")
            if key.value in seen:
                raise _refused(self._name, line, f"{_short(key.value)} is set a second time")
            seen.add(key.value)
            yield key.value, self.node(value, line, depth + 1)


def _where(name: str, line: int) -> str:
    return f"{name}, line {line}" if name else ""


def _refused(name: str, line: int, reason: str) -> UserError:
    where = _where(name, line)
    return UserError(f"{where}: {reason}" if where else reason)


def _short(text: str) -> str:
    return printable(text)[:60]
