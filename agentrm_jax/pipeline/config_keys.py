"""The keys of a configuration, read from its dataclasses and their docstrings."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.registry import Registry
from agentrm_jax.core.text import shown
from agentrm_jax.pipeline.config_values import is_free

_WIDTH = 100
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_ENTRY = re.compile(r"  (\w+(?:, \w+)*): (.*)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key of a section.

    Attributes:
      name: Its full name, such as `train_rm.fit.batch_size`; items of a list have `[]` in it.
      type: Its type in words.
      default: Its default; `dataclasses.MISSING` if the key is required.
      text: Its description.
    """

    name: str
    type: str
    default: Any
    text: str

    @property
    def shown_default(self) -> str | None:
        """The default as YAML; None if the key is required or not set by default."""
        if self.default is dataclasses.MISSING or self.default is None:
            return None
        return _yaml(self.default)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section of a configuration.

    Attributes:
      name: Its full name, such as `train_rm.fit`; `keys` for the configuration itself. A kind of an
        open section is `SECTION, kind KIND`.
      text: Its description.
      keys: The keys of this section, without the keys of its subsections.
    """

    name: str
    text: str
    keys: Sequence[Key]


def config_sections(config: type) -> list[Section]:
    """Returns the sections of a configuration, each followed by the sections in it.

    Args:
      config: A dataclass. Fields that are dataclasses are sections; a field of type
        `Annotated[Base, REGISTRY]` is a section whose keys depend on its key `kind`.
    """
    return list(_section(config, "", dataclasses.MISSING))


def keys_help(config: type) -> str:
    """Returns the keys of a configuration with types, defaults and descriptions, as plain text.

    Args:
      config: A dataclass; see `config_sections`.
    """
    return "\n\n".join("\n".join(_lines(each)) for each in config_sections(config)) + "\n"


def _section(config: Any, prefix: str, default: Any) -> Iterator[Section]:
    """Yields a section, then the sections that it holds.

    Args:
      config: Its dataclass.
      prefix: Of its keys, with the dot at the end.
      default: The configuration that is used if the section is not given.
    """
    name = prefix.removesuffix(".") or "keys"
    yield from _fields(config, prefix, default, name)


def _fields(config: Any, prefix: str, default: Any, name: str) -> Iterator[Section]:
    """Yields a section of this name, then the sections that it holds; see `_section`."""
    keys: list[Key] = []
    inner: list[Iterator[Section]] = []
    hints = typing.get_type_hints(config, include_extras=True)
    texts = _descriptions(config)
    for field in dataclasses.fields(config):
        key, kind = f"{prefix}{field.name}", _without_none(hints[field.name])
        value = _default(field) if default is dataclasses.MISSING else getattr(default, field.name)
        text = texts.get(field.name, "")
        if isinstance(registry := _registry(kind), Registry):
            base = _without_none(typing.get_args(kind)[0])
            sections = _named_sections if typing.get_origin(base) in _MAPPINGS else _kinds
            inner.append(sections(registry, key, value, text))
        elif isinstance(registry := _registry(_inner(kind)), Registry):
            inner.append(_kinds(registry, f"{key}.NAME", dataclasses.MISSING, text))
        elif dataclasses.is_dataclass(kind):
            inner.append(_section(kind, f"{key}.", value))
        elif dataclasses.is_dataclass(item := _item(kind)):
            keys.append(Key(name=key, type="list of sections", default=value, text=text))
            inner.append(_section(item, f"{key}[].", dataclasses.MISSING))
        else:
            keys.append(Key(name=key, type=_type_name(kind), default=value, text=text))
    yield Section(name=name, text=_first_sentence(config), keys=tuple(keys))
    for sections in inner:
        yield from sections


def _kinds(registry: Registry[Any], key: str, default: Any, text: str) -> Iterator[Section]:
    """Yields a section whose keys depend on its key `kind`."""
    name = registry.name_of(type(default)) or dataclasses.MISSING
    kinds = Key(name=f"{key}.kind", type=_one_of(registry.names()), default=name, text="")
    yield Section(name=key, text=text or f"A {registry.noun}.", keys=(kinds,))
    for kind in registry.names():
        member = _loaded(registry, kind)
        if isinstance(member, str):
            yield Section(name=f"{key}, kind {kind}", text=member, keys=())
        else:
            own = default if type(default) is member else dataclasses.MISSING
            yield from _fields(member, f"{key}.", own, f"{key}, kind {kind}")


def _named_sections(
    registry: Registry[Any], key: str, default: Any, text: str
) -> Iterator[Section]:
    """Yields a section that holds a section for each name of a registry."""
    yield Section(name=key, text=text or f"Options by {registry.noun}.", keys=())
    for name in registry.names():
        member = _loaded(registry, name)
        if isinstance(member, str):
            yield Section(name=f"{key}.{name}", text=member, keys=())
        else:
            given = default.get(name, dataclasses.MISSING) if default else dataclasses.MISSING
            yield from _section(member, f"{key}.{name}.", given)


def _loaded(registry: Registry[Any], name: str) -> Any:
    """The dataclass of a name, or the reason why there is none as text."""
    try:
        member = registry.load(name)
    except UserError as error:
        return str(error)
    return member if dataclasses.is_dataclass(member) else "has no keys"


def _lines(section: Section) -> Iterator[str]:
    """Yields the lines of a section in a terminal."""
    heading = f"{section.name}: {section.text}"
    yield from textwrap.wrap(heading, _width(), subsequent_indent="    ")
    for key in section.keys:
        option = key.name if "[]" in key.name else f"--{key.name}"  # lists of sections: files only
        if key.default is dataclasses.MISSING:
            yield f"  {option}=... ({key.type}; required)"
        elif key.default is None:
            yield f"  {option}=... ({key.type}; not set by default)"
        else:
            yield f"  {option}={key.shown_default} ({key.type})"
        yield from textwrap.wrap(
            key.text, _width(), initial_indent=" " * 8, subsequent_indent=" " * 8
        )


def _width() -> int:
    return min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_yaml, value))}]"
    return shown(value)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return _one_of([str(each) for each in typing.get_args(kind)])
    if is_free(kind):
        return "keys and values"
    if (item := _item(kind)) is not None:
        return f"list of {_type_name(item)}"
    return _NAMES.get(kind, str(kind))


def _one_of(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _without_none(kind: Any) -> Any:
    """The type without `None` as an alternative."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return kind


def _item(kind: Any) -> Any:
    """The type of the items of a list, None if the type is not a list."""
    is_list = typing.get_origin(kind) in (tuple, list, collections.abc.Sequence)
    return typing.get_args(kind)[0] if is_list else None


def _registry(kind: Any) -> Any:
    """The registry of an `Annotated[Base, REGISTRY]`, None for other types."""
    return next(iter(getattr(kind, "__metadata__", ())), None)


def _inner(kind: Any) -> Any:
    """The type of the values of a mapping, None if the type is not a mapping."""
    return typing.get_args(kind)[1] if typing.get_origin(kind) in _MAPPINGS else None


_MAPPINGS = (dict, collections.abc.Mapping)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _first_sentence(config: Any) -> str:
    return (inspect.getdoc(config) or "").partition("\n\n")[0].replace("\n", " ")


def _descriptions(config: type) -> Mapping[str, str]:
    """The descriptions of attributes in the docstrings of a class and its bases, by name."""
    found: dict[str, str] = {}
    for each in reversed(config.__mro__):
        doc = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        names: list[str] = []
        for line in doc.partition("Attributes:\n")[2].splitlines():
            if entry := _ENTRY.fullmatch(line):
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.startswith("    "):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                names = []
    return found
