"""Open lists: selection rules, test-time methods, value heads, reward-model kinds, policies.

A name gets into a list in one of two ways: an entry point of an installed package, as the built-in
ones do, or `register` at run time. Both are found by the same name.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, TypeVar

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable

T = TypeVar("T")


class Registry(Generic[T]):
    """One open list of named objects.

    Args:
      group: Entry point group, for example `agentrm_jax.heads`.
      noun: What its members are called in error messages, for example "value head".
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group, self.noun = group, noun
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Returns a decorator that adds an object under a name.

        Registering an object of the same file and name again replaces it, as running a notebook
        cell twice does, or a script that is its own plugin. A name that another object or an
        installed package has is refused.

        Args:
          name: The name in configuration files and in result rows.

        Raises:
          UserError: An installed package provides the name, or another object has it.
        """
        if not name.isidentifier():
            raise UserError(f"{self.noun} name {printable(name)!r} must be letters, digits and _")
        if points := self._points(name):
            raise UserError(f"{self.noun} {name!r} is provided by {_origin(points[0])} already")

        def add(member: Any) -> Any:
            before = self._registered.get(name)
            if before is not None and _source(before) != _source(member):
                raise UserError(
                    f"{self.noun} {name!r} is registered already, by {'.'.join(_place(before))}; "
                    "choose another name"
                )
            self._registered[name] = member
            return member

        return add

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        installed = {point.name for point in self._installed()}
        return sorted(installed | set(self._registered))

    def load(self, name: str) -> T:
        """Returns the object of a name.

        Raises:
          UserError: No such name (the message gives the nearest one), two packages provide it, or
            it cannot be imported.
        """
        if name in self._registered:
            return self._registered[name]
        points = self._points(name)
        if not points:
            known = self.names()
            near = difflib.get_close_matches(name[:60], known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"unknown {self.noun} {printable(name)[:60]!r}; {hint}known: {', '.join(known)}"
            )
        if len(points) > 1:
            claims = " and ".join(map(_origin, points))
            raise UserError(f"{self.noun} {name!r} is provided by {claims}; uninstall one")
        try:
            return points[0].load()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.noun} {name!r} ({_origin(points[0])}) cannot be loaded: {first_line(error)}"
            ) from error

    def name_of(self, member: T) -> str | None:
        """Returns the name under which an object is listed, None if it is not listed."""
        for name, each in self._registered.items():
            if each is member:
                return name
        for point in self._installed():
            module, _, attribute = point.value.partition(":")
            if _place(member) == (module, attribute):
                return point.name
        return None

    def _points(self, name: str) -> list[EntryPoint]:
        return list(self._installed().select(name=name))

    def _installed(self) -> EntryPoints:
        return _entry_points(self.group, tuple(sys.path))


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """The entry points of the packages on `sys.path`; reading all their files takes 30 ms."""
    return entry_points(group=group)


def _place(member: Any) -> tuple[str, str]:
    """The module and the name with which a class or function is defined."""
    kind = member if hasattr(member, "__qualname__") else type(member)
    return kind.__module__, kind.__qualname__


def _source(member: Any) -> tuple[str, str]:
    """The file, or without one the module, and the name with which an object is defined."""
    module, name = _place(member)
    file = getattr(sys.modules.get(module), "__file__", None)
    return (os.path.realpath(file) if file else module), name


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'an unknown package'}: {point.value}"
