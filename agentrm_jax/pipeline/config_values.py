"""A configuration as JSON values, and the keys that earlier versions had.

A field of type `Annotated[Base, REGISTRY]` is an open section: its key `kind` names a class in the
registry, its other keys are the fields of that class. `Annotated[Mapping[str, Base], REGISTRY]` has
a sub-section for each name in the registry. `Mapping[str, Annotated[Base, REGISTRY]]` has an open
section for each name that the user gives; without `kind` the name is that of a kind.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.registry import Registry
from agentrm_jax.core.text import first_line

KIND = "kind"
"""The key of an open section that names the class of its other keys."""

MOVED = {
    "explore.search.exploration": "explore.search.selection.exploration",
    "explore.search.num_slots": "explore.search.concurrency",
    "sample.slots": "sample.concurrency",
    "evaluate.slots": "evaluate.concurrency",
    "evaluate.beam.num_slots": "evaluate.beam.concurrency",
    "engine.max_pieces": "engine.max_segments",
}
"""From the keys of earlier versions to the keys of this one."""

SHARED_ONCE = {"train_rm.head": ("bins", "low", "high", "sigma", "huber")}
"""Keys that all kinds of a section had in earlier versions; those of other kinds are ignored."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenSection:
    """The registry of an open section, and whether it holds a sub-section for each name."""

    registry: Registry[Any]
    by_name: bool

    def member(self, name: str) -> Any:
        """Returns the class of a name.

        Raises:
          UserError: There is no such name, or its object is not a dataclass with fields as keys.
        """
        member = self.registry.load(name)
        if not (isinstance(member, type) and dataclasses.is_dataclass(member)):
            raise UserError(
                f"{self.registry.noun} {name!r} must be a dataclass whose fields are its keys"
            )
        if not self.by_name and KIND in types_of(member):
            raise UserError(f"{self.registry.noun} {name!r} must not have a field named {KIND}")
        return member

    def kind_of(self, value: Any) -> str:
        """Returns the name of a value's class; its module and name if it is not registered."""
        listed = self.registry.name_of(type(value))
        return listed or f"{type(value).__module__}:{type(value).__qualname__}"


def open_section(kind: Any) -> OpenSection | None:
    """Returns the registry of a field's type, None if the field is not an open section."""
    kind = without_none(kind)
    if typing.get_origin(kind) is not typing.Annotated:
        return None
    base, *notes = typing.get_args(kind)
    registry = next((note for note in notes if isinstance(note, Registry)), None)
    if registry is None:
        return None
    return OpenSection(registry, by_name=typing.get_origin(base) in (Mapping, dict))


def named_section(kind: Any) -> OpenSection | None:
    """Returns the registry of a field that has an open section for each name, None for others."""
    kind = without_none(kind)
    is_mapping = typing.get_origin(kind) in (Mapping, dict)
    return open_section(typing.get_args(kind)[1]) if is_mapping else None


def is_free(kind: Any) -> bool:
    """Returns whether a field holds keys and values of any kind, which somebody else checks."""
    is_mapping = typing.get_origin(kind) in (Mapping, dict)
    return is_mapping and typing.get_args(kind)[1] is Any


def without_none(kind: Any) -> Any:
    """Returns the type X of `X | None`; any other type as it is."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return kind


@functools.cache
def types_of(kind: Any) -> dict[str, Any]:
    """Returns the types of a dataclass's fields by name.

    Raises:
      UserError: A type cannot be found, as in a plugin that imports it for type checkers only.
    """
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise UserError(
            f"the types of {kind.__module__}.{kind.__qualname__} cannot be found: "
            f"{first_line(error)}"
        ) from None
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def plain(config: Any) -> Any:
    """Returns a configuration as JSON values, with the kinds of its open sections.

    Args:
      config: A dataclass, or a value of one: a mapping, a sequence, a text or a number.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        known = types_of(type(config))
        return {name: _plain(kind, getattr(config, name)) for name, kind in known.items()}
    if isinstance(config, Mapping):
        return {key: plain(inner) for key, inner in config.items()}
    return [plain(inner) for inner in config] if isinstance(config, list | tuple) else config


def _plain(kind: Any, value: Any) -> Any:
    if named_section(kind) is not None and value is not None:
        inner = typing.get_args(without_none(kind))[1]
        return {name: _plain(inner, each) for name, each in value.items()}
    opened = open_section(kind)
    if opened is None or opened.by_name or value is None:
        return plain(value)
    return {KIND: opened.kind_of(value), **plain(value)}


def defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the defaults of a configuration's keys and of all inner keys, by dotted key."""
    found: dict[str, Any] = {}
    if isinstance(config, Sequence) and not isinstance(config, str):
        for number, inner in enumerate(config):
            found |= defaults(inner, f"{prefix}{number}.")
    elif isinstance(config, Mapping):
        for name, inner in config.items():
            found |= defaults(inner, f"{prefix}{name}.")
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        known = types_of(type(config))
        for field in dataclasses.fields(config):
            key = f"{prefix}{field.name}"
            opened = open_section(known.get(field.name))
            if opened is not None and not opened.by_name:
                if (default := default_of(field)) is not None:
                    found[f"{key}.{KIND}"] = opened.kind_of(default)
            elif field.default is not dataclasses.MISSING:
                found[key] = field.default
            found |= defaults(getattr(config, field.name), f"{key}.")
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Returns the default value of a field, None if it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def upgraded(recorded: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns a record of an earlier version with the keys of this version.

    Args:
      recorded: Values by dotted key, for example of the `depends_on` of a `stage.json`.
      config: The configuration class that the keys belong to.
    """
    moved = {MOVED.get(key, key): value for key, value in recorded.items()}
    for section, names in SHARED_ONCE.items():
        kept = known_keys(config, section, moved.get(f"{section}.{KIND}"))
        if kept is not None:
            for name in names:
                if name not in kept:
                    moved.pop(f"{section}.{name}", None)
    return moved


def known_keys(config: Any, section: str, kind: str | None) -> set[str] | None:
    """Returns the keys of an open section with a kind.

    None if the section is not an open one, or if there is no such kind.
    """
    for name in section.split("."):
        config = types_of(config).get(name) if dataclasses.is_dataclass(config) else None
    opened = open_section(config)
    if opened is None or not isinstance(kind, str):
        return None
    try:
        return set(types_of(opened.member(kind)))
    except UserError:
        return None
