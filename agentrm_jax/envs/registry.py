"""Environments by name: the entry point group `agentrm_jax.environments`."""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.family_options import TakesOptions
from agentrm_jax.core.protocols import ComparesActions, DeclaresOutcome, EnvironmentFamily
from agentrm_jax.envs.contract import blaming
from agentrm_jax.envs.perturbations import SEPARATOR, SILENT, find_wording, perturbed

GROUP = "agentrm_jax.environments"


def environment_names() -> list[str]:
    """All registered names, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def is_registered(name: str) -> bool:
    """Whether NAME, or the NAME of NAME@WORDING, is registered."""
    return name.partition(SEPARATOR)[0] in environment_names()


@functools.cache
def load_family(name: str) -> EnvironmentFamily:
    """Returns the environment of a name; the same object each time.

    `NAME@WORDING` is the environment in one of its wordings (`envs.perturbations`), `NAME@silent`
    its form whose end does not tell the outcome, `NAME@silent@WORDING` that form in a wording. Of a
    family that takes options, `NAME@FORM` is one of its forms.

    Raises:
      UserError: No such name (with the nearest one), two distributions claim it, or what is
        registered cannot be used.
    """
    base, separator, wording = name.rpartition(SEPARATOR)
    if separator:
        family = load_family(base)
        if wording == SILENT:
            return _silent(family)
        if isinstance(family, TakesOptions):
            return family.form(wording)
        return perturbed(family, find_wording(family, wording))
    points = list(entry_points(group=GROUP, name=name))
    if not points:
        known = environment_names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"environment {name!r}: not registered; {hint}known: {', '.join(known)}")
    if len(points) > 1:
        claims = " and ".join(_origin(point) for point in points)
        raise UserError(f"environment {name!r}: registered by {claims}; uninstall one")
    return _created(points[0])


def action_key(environment: str, action: str) -> str:
    """Returns the normal form in which an environment compares an action; raises nothing.

    An environment without `action_key`, or whose `action_key` raises or returns no text, compares
    actions exactly except for blanks at both ends.
    """
    return key_of(lambda: load_family(environment), action)


def end_reveals_outcome(environment: str) -> bool | None:
    """Returns whether an environment declares that its last observation gives the outcome away.

    None if it declares nothing, or something else than true or false.
    """
    family = load_family(environment)
    declared = family.end_reveals_outcome if isinstance(family, DeclaresOutcome) else None
    return declared if isinstance(declared, bool) else None


def key_of(family_of: Callable[[], EnvironmentFamily], action: str) -> str:
    """Returns the normal form in which a family compares an action; see `action_key`."""
    plain = action.strip()
    try:
        family = family_of()
        key = family.action_key(action) if isinstance(family, ComparesActions) else plain
    except KeyboardInterrupt:
        raise
    except BaseException:  # the search continues: at worst equal actions stay apart
        return plain
    return str.__str__(key) if isinstance(key, str) else plain


def family_at(path: str) -> EnvironmentFamily:
    """Returns the environment of a class, `module:Class`, that need not be registered.

    Raises:
      UserError: It cannot be imported or used.
    """
    point = EntryPoint(name=path, value=path, group=GROUP)
    return _usable(f"environment {path!r}", point)


def named_family(name: str) -> EnvironmentFamily:
    """Returns a registered environment, or a class `module:Class`, also of the working folder.

    Raises:
      UserError: It is not registered, cannot be imported, or cannot be used.
    """
    if ":" not in name:
        return load_family(name)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return family_at(name)


def _silent(family: EnvironmentFamily) -> EnvironmentFamily:
    """The form of an environment whose end does not tell the outcome.

    Raises:
      UserError: It has none.
    """
    silent = getattr(family, "silent", None)
    if silent is None:
        raise UserError(f"environment {family.name!r}: has no form with reveal: false")
    return silent()


def _created(point: EntryPoint) -> EnvironmentFamily:
    where = f"environment {point.name!r} ({_origin(point)})"
    family = _usable(where, point)
    if family.name != point.name:
        raise UserError(f"{where}: calls itself {family.name!r}; `name` must be {point.name!r}")
    return family


def _usable(where: str, point: EntryPoint) -> EnvironmentFamily:
    with blaming(f"{where}: cannot be loaded"):
        family = point.load()()
    if missing := [member for member in _members() if not hasattr(family, member)]:
        raise UserError(f"{where}: lacks {', '.join(missing)} of core.protocols.EnvironmentFamily")
    return family


def _members() -> list[str]:
    """Returns the members that the protocol asks for: annotated attributes and methods."""
    methods = (key for key, value in vars(EnvironmentFamily).items() if callable(value))
    names = (*EnvironmentFamily.__annotations__, *methods)
    return sorted(name for name in names if not name.startswith("_"))


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'unknown distribution'}: {point.value}"
