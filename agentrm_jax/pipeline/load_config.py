"""A `RunConfig` from YAML files and overrides; its errors name key, file and line.

`located` does the same for errors that are raised later, while the configuration is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from agentrm_jax.core.addresses import is_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable, shown
from agentrm_jax.core.yaml_nodes import Node, parse_yaml, read_yaml
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_scalars import free_value, got, refused, scalar
from agentrm_jax.pipeline.config_values import (
    KIND,
    MOVED,
    SHARED_ONCE,
    OpenSection,
    default_of,
    is_free,
    known_keys,
    named_section,
    open_section,
    types_of,
    without_none,
)
from agentrm_jax.pipeline.plugins import import_plugin

T = TypeVar("T")

_SOURCE = "_source"
"""Attribute of a configuration: the keys that were set, with file and line. It is not a field, so
that configurations with equal values are equal."""


def load_config(path: pathlib.Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration of a file with overrides laid over it.

    Args:
      path: A YAML file.
      overrides: In order: `--sft.fit.length=512`, or `--config=FILE` for another file.

    Raises:
      UserError: A file is missing or not YAML; a key is unknown; a value is of another type, not
        finite or out of range. Names the key and, if a file sets it, file and line.
    """
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[T], path: pathlib.Path, overrides: Sequence[str] = ()) -> T:
    """Returns a configuration of any class; see `load_config`.

    Args:
      kind: A dataclass. The files that its key `plugins` names, if it has one, are imported before
        any other key is read.
    """
    return load_layers(kind, [read_yaml(path), *override_layers(overrides)])


def override_layers(overrides: Sequence[str]) -> list[Node]:
    """Returns a layer of keys for each override; see `load_config`.

    Raises:
      UserError: A word is no override, or a file that `--config` names cannot be read.
    """
    return [_override(key, text) for key, text in _options(overrides)]


def load_layers(kind: type[T], layers: Sequence[Node]) -> T:
    """Returns a configuration of any class from layers of keys; see `load_config`.

    Args:
      kind: As of `load_as`.
      layers: Keys and values, each layer in place of what the layers before it set.
    """
    layers = [_moved(kind, layer) for layer in layers]
    merged = _with_server(kind, functools.reduce(overlaid, layers))
    _import_plugins(kind, merged)
    for layer in layers:
        _check_keys(kind, layer, "")
    config = _config(kind, merged, "")
    object.__setattr__(config, _SOURCE, merged)
    return config


@contextmanager
def located(config: Any) -> Iterator[None]:
    """Adds section, file and line to errors about a field that the block raises.

    The field is either a full key, such as `engine.context`, or a name that only one section of the
    configuration has.

    Args:
      config: What `load_config` returned. One that was made in Python has no files; its errors get
        the section alone.
    """
    try:
        yield
    except UserError as error:
        key = None if error.field is None or error.where else _full_key(config, error.field)
        if key is None:
            raise
        source = getattr(config, _SOURCE, None)
        where = "" if source is None else _deepest(source, key).where
        raise error.located(key, where) from error


def _full_key(config: Any, field: str) -> str | None:
    """The key of a field, None if no section or more than one has it."""
    if _holds(config, field):
        return field
    sections = [key for key, inner in _sections(config, "") if _holds(inner, field)]
    return f"{sections[0]}.{field}" if len(sections) == 1 else None


def _holds(config: Any, key: str) -> bool:
    for name in key.split("."):
        inner = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
        if name not in inner:
            return False
        config = inner[name]
    return True


def _sections(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """All sections of a configuration with their keys."""
    inner = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    for name, value in inner.items():
        if name != _SOURCE and (dataclasses.is_dataclass(value) or isinstance(value, Mapping)):
            key = f"{prefix}{name}"
            yield key, value
            yield from _sections(value, f"{key}.")


def _moved(kind: Any, layer: Node) -> Node:
    """The layer with the keys of earlier versions under their present names."""
    for old, new in MOVED.items():
        if (node := _at(layer, old)) is None:
            continue
        if _at(layer, new) is not None:
            raise refused(node, old, f"is the earlier name of {new}, which is set too; delete it")
        layer = overlaid(_without(layer, old.split(".")), nested(new, node))
    for section, names in SHARED_ONCE.items():
        head = _at(layer, section)
        given = None if head is None else _at(head, KIND)
        kept = None if given is None else known_keys(kind, section, given.plain)
        for name in names:
            if kept is not None and name not in kept and _at(layer, f"{section}.{name}"):
                layer = _without(layer, [*section.split("."), name])
    return layer


def _with_server(kind: Any, layer: Node) -> Node:
    """The layer with a server that `policy` names as the agent."""
    policy = _at(layer, "policy")
    url = None if policy is None or not isinstance(policy.value, str) else policy.value
    if policy is None or not is_url(url) or not {"policy", "agent"} <= set(types_of(kind)):
        return layer
    agent, trains = _at(layer, f"agent.{KIND}"), _at(layer, "train_policy")
    if agent is not None and agent.value != "server":
        reason = f"must be a model directory because agent.{KIND} is {got(agent)}"
        raise refused(policy, "policy", reason)
    if _at(layer, "agent.url") is not None:
        reason = "is a server, and agent.url names one too; delete one of them"
        raise refused(policy, "policy", reason)
    if trains is not None and scalar(bool, trains, "train_policy"):
        raise refused(trains, "train_policy", "must be false because policy is a server")
    where = policy.where
    for key, value, tag in (
        (f"agent.{KIND}", "server", "str"),
        ("policy", "", "null"),
        ("train_policy", "false", "bool"),
    ):
        layer = overlaid(layer, nested(key, Node(value=value, tag=tag, where=where)))
    return overlaid(layer, nested("agent.url", policy))


def _at(node: Node, key: str) -> Node | None:
    """The node of a dotted key, None if it is not set."""
    for name in key.split("."):
        if not isinstance(node.value, dict) or name not in node.value:
            return None
        node = node.value[name]
    return node


def _without(node: Node, names: Sequence[str]) -> Node:
    """The node without one inner key."""
    assert isinstance(node.value, dict)
    first, *rest = names
    kept = {name: inner for name, inner in node.value.items() if name != first}
    if rest:
        kept[first] = _without(node.value[first], rest)
    return dataclasses.replace(node, value=kept)


def nested(key: str, node: Node) -> Node:
    """Returns the layer that sets one dotted key."""
    for name in reversed(key.split(".")):
        node = Node(value={name: node}, tag="map", where=node.where)
    return node


def _import_plugins(kind: Any, node: Node) -> None:
    """Imports what the key `plugins` names; what it registers may be needed by the other keys."""
    if (given := _at(node, "plugins")) is None or "plugins" not in types_of(kind):
        return
    for name in _value(Sequence[str], given, "plugins"):
        try:
            import_plugin(name)
        except UserError as error:
            raise refused(given, "plugins", f"names {error}") from error


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
    """The layer that sets one key, or all keys of a file."""
    if key == "config":
        return read_yaml(pathlib.Path(text))
    try:
        node = parse_yaml(text, "") if text.strip() else Node(value="", tag="str", where="")
    except UserError:  # a path or a wording may begin as YAML does
        node = Node(value=text, tag="str", where="")
    if isinstance(node.value, str) and text.strip()[:1] not in ("'", '"'):
        node = dataclasses.replace(node, value=text)  # a # in it begins no comment
    return nested(key, node)


def overlaid(base: Node, over: Node) -> Node:
    """Returns the base with the keys of another layer in place of its own."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = overlaid(merged[key], node) if key in merged else node
    return dataclasses.replace(base, value=merged)


def _check_keys(kind: Any, node: Node, key: str) -> None:
    """Refuses keys that a configuration does not have."""
    if (item := _item_of(kind)) is not None and isinstance(node.value, list):
        for number, inner in enumerate(node.value):
            _check_keys(item, inner, f"{key}.{number}")
    left_out = node.tag == "null" and types.NoneType in typing.get_args(kind)
    if (opened := open_section(kind)) is not None and not left_out:
        _require_section(node, key)  # its keys are checked once its kind is known
        if opened.by_name and isinstance(node.value, dict):
            for name, inner in node.value.items():
                _require_section(inner, f"{key}.{name}")
    if named_section(kind) is not None and not left_out:
        _require_section(node, key)
        assert isinstance(node.value, dict)
        for name, inner in node.value.items():
            _require_section(inner, f"{key}.{name}")
    if not dataclasses.is_dataclass(kind):
        return
    _require_section(node, key)
    assert isinstance(node.value, dict)
    known = types_of(kind)
    for name, inner in node.value.items():
        own = f"{key}.{name}".lstrip(".")
        if name not in known:
            near = difflib.get_close_matches(name[:60], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}"
            where = f"{inner.where}: " if inner.where else ""
            raise UserError(f"{where}unknown key {printable(own)[:100]}; {hint}")
        _check_keys(known[name], inner, own)


def _require_section(node: Node, key: str) -> None:
    if not isinstance(node.value, dict):
        raise refused(node, key, f"must be keys and values (got {got(node)})")


def _config(kind: Any, node: Node, key: str) -> Any:
    """Builds a configuration from its values; absent keys have their defaults."""
    assert isinstance(node.value, dict)  # `_check_keys` has looked
    known, defaults = types_of(kind), {field.name: field for field in dataclasses.fields(kind)}
    values = {
        name: _value(known[name], inner, f"{key}.{name}".lstrip("."), default_of(defaults[name]))
        for name, inner in node.value.items()
    }
    for field in dataclasses.fields(kind):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise refused(node, f"{key}.{field.name}".lstrip("."), "is missing")
    try:
        return kind(**values)
    except UserError as error:
        if error.field is None:
            raise
        own = f"{key}.{error.field}".lstrip(".")
        raise error.located(own, _deepest(node, error.field).where) from None


def _open(opened: OpenSection, node: Node, key: str, default: str | None) -> Any:
    """The value of an open section; its kind is the default one unless it is given."""
    assert isinstance(node.value, dict)
    if opened.by_name:
        return {
            name: _member(opened, name, inner, inner, f"{key}.{name}")
            for name, inner in node.value.items()
        }
    given = node.value.get(KIND)
    if given is None and default is None:
        names = ", ".join(opened.registry.names())
        raise refused(node, f"{key}.{KIND}", f"is missing; must be one of {names}")
    name = default if given is None else str(scalar(str, given, f"{key}.{KIND}"))
    assert name is not None
    return _member(opened, name, given or node, _without(node, [KIND]), f"{key}")


def _member(opened: OpenSection, name: str, at: Node, node: Node, key: str) -> Any:
    try:
        member = opened.member(name)
    except UserError as error:
        raise refused(at, key, f"is not known: {error}") from error
    _check_keys(member, node, key)
    return _config(member, node, key)


def _deepest(node: Node, field: str) -> Node:
    """The node that sets a field, or that of the section in which the field has its default."""
    for name in field.split("."):
        inner = node.value.get(name) if isinstance(node.value, dict) else None
        if inner is None:
            break
        node = inner
    return node


def _value(kind: Any, node: Node, key: str, default: Any = None) -> Any:
    """The value of a field of this type."""
    options = typing.get_args(kind)
    if types.NoneType in options:
        if node.tag == "null":
            return None
        return _value(without_none(kind), node, key, default)
    if is_free(kind):
        if not isinstance(node.value, dict):
            raise refused(node, key, f"must be keys and values (got {got(node)})")
        return free_value(node)
    if (opened := open_section(kind)) is not None:
        kind_name = None if default is None or opened.by_name else opened.kind_of(default)
        return _open(opened, node, key, kind_name)
    if (opened := named_section(kind)) is not None:
        assert isinstance(node.value, dict)  # `_check_keys` has looked
        kinds = opened.registry.names()
        return {
            name: _open(opened, inner, f"{key}.{name}", name if name in kinds else None)
            for name, inner in node.value.items()
        }
    if typing.get_origin(kind) is typing.Annotated:
        return _value(options[0], node, key, default)
    if dataclasses.is_dataclass(kind):
        return _config(kind, node, key)
    if typing.get_origin(kind) is typing.Literal:
        if node.value not in options:
            raise refused(node, key, f"must be one of {', '.join(options)} (got {got(node)})")
        return node.value
    if (item := _item_of(kind)) is not None:
        if not isinstance(node.value, list):
            raise refused(node, key, f"must be a list, such as [a, b] (got {got(node)})")
        return tuple(_value(item, one, f"{key}.{i}") for i, one in enumerate(node.value))
    return scalar(kind, node, key)


def _item_of(kind: Any) -> Any:
    """The type of the items of a list, None if the type is no list."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) in (tuple, Sequence) else None
