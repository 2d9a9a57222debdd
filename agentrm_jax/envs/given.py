"""Environments that are given as classes, without being registered.

A worker process loads such a class itself: from its module, or from the script in which it is
defined, of which only the statements that the class needs are executed.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pathlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Environment, EnvironmentFamily, Prompt
from agentrm_jax.core.records import Split, Task
from agentrm_jax.core.text import printable
from agentrm_jax.envs.contract import blaming
from agentrm_jax.envs.perturbations import SEPARATOR, find_wording, perturbed
from agentrm_jax.envs.registry import is_registered, load_family
from agentrm_jax.envs.replay import ReplayedEpisode, Simulators

_LIVE_SIMULATORS = 16
"""Environments without `fork` that a process keeps alive; others are replayed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """The place from which another process loads a class.

    Attributes:
      name: The class, dotted if it is defined in another class.
      module: Its module, if that can be imported.
      file: Else the script that defines it.
      package: The package that relative imports of the script refer to.
    """

    name: str
    module: str = ""
    file: str = ""
    package: str = ""


class Families:
    """Environment families by name, from classes or from their locations.

    Args:
      given: For each name a class, or the location of one, which is loaded when it is first used.
    """

    def __init__(self, given: Mapping[str, type | Location]) -> None:
        self._given = given
        self._families: dict[str, EnvironmentFamily] = {}

    def load(self, name: str) -> EnvironmentFamily:
        """Returns the family of a name: of a given class, or a registered one.

        Raises:
          UserError: The name is neither given nor registered, or its family cannot be created.
        """
        if (family := self.find(name)) is not None:
            return family
        try:
            return load_family(name)
        except UserError:
            if not self._given or is_registered(name):
                raise
        raise UserError(
            f"environment {printable(name)!r}: neither given to the pool, which has "
            f"{', '.join(map(printable, self._given))}, nor registered"
        )

    def find(self, name: str) -> EnvironmentFamily | None:
        """Returns the family of a name, or of NAME@WORDING; None if no class was given for it.

        Raises:
          UserError: The class cannot be loaded or created, or it has no such wording.
        """
        base, separator, wording = name.partition(SEPARATOR)
        if base not in self._given:
            return None
        if name not in self._families:
            if separator:
                family = self.find(base)
                assert family is not None
                self._families[name] = perturbed(family, find_wording(family, wording))
            else:
                self._families[name] = _family(name, self._given[name])
        return self._families[name]


def location_of(member: type) -> Location | None:
    """Returns the location of a class; None if only this process can create it.

    That is a class defined inside a function, in a notebook or at a prompt.
    """
    if "<locals>" in member.__qualname__:
        return None
    module = sys.modules.get(member.__module__)
    if module is None:
        return None
    if member.__module__ != "__main__" and _importable(member.__module__):
        return Location(member.__qualname__, module=member.__module__)
    file = getattr(module, "__file__", None)
    if not file or not pathlib.Path(file).is_file() or pathlib.Path(file).suffix != ".py":
        return None
    return Location(
        member.__qualname__,
        file=str(pathlib.Path(file).resolve()),
        package=getattr(module, "__package__", None) or "",
    )


def given_classes(environments: Mapping[str, type] | Sequence[str] | None) -> dict[str, type]:
    """Returns the classes that a pool is given by name; loads the registered names.

    Raises:
      UserError: It is neither a mapping from names to classes nor a list of registered names.
    """
    if isinstance(environments, Mapping):
        for name, member in environments.items():
            check_class(name, member)
        return dict(environments)
    names: Any = [environments] if isinstance(environments, str) else environments
    names = () if names is None else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(
            'environments must be classes by name, such as {"guess": Guess}, or a list of '
            f"registered names (got {printable(repr(environments))[:60]})"
        )
    for name in names:
        load_family(name)
    return {}


def check_class(name: str, member: Any) -> None:
    """Refuses an object that is neither an environment class nor a family class.

    Raises:
      UserError: It is no class, or it lacks a method; says which one.
    """
    where = f"environments[{name!r}]"
    if not isinstance(member, type):
        raise UserError(f"{where} must be a class (got {printable(repr(member))[:60]})")
    if hasattr(member, "create"):
        return
    if missing := [method for method in ("reset", "step") if not hasattr(member, method)]:
        raise UserError(
            f"{where}: class {member.__name__} must have {' and '.join(missing)}; an environment "
            "has reset(task), step(action) and, if it can be copied, fork()"
        )


class _ClassFamily:
    """The family of a class that is only an `Environment`."""

    def __init__(self, name: str, environment: type) -> None:
        self.name = name
        self.pooled = bool(getattr(environment, "pooled", True))
        self.end_reveals_outcome = getattr(environment, "end_reveals_outcome", None)
        self.metric = str(getattr(environment, "metric", "mean return"))
        self._environment = environment
        self._simulators = Simulators(environment, most=_LIVE_SIMULATORS)
        if callable(key := getattr(environment, "action_key", None)):
            self.action_key = key

    def missing(self) -> str | None:
        return None

    def counts(self) -> Mapping[Split, int | None]:
        return {}

    def kinds(self) -> Sequence[str]:
        return ("default",)

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        return []

    def prompt(self) -> Prompt:
        raise UserError(
            f"environment {self.name!r}: was given as a class, which has no prompt; give one as "
            f'prompts={{"{self.name}": Prompt(instruction="...")}}'
        )

    def create(self) -> Environment:
        if hasattr(self._environment, "fork"):
            return self._environment()
        return ReplayedEpisode(self._simulators)

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        return None


def _family(name: str, given: type | Location) -> EnvironmentFamily:
    with blaming(f"environment {name!r}: cannot be loaded"):
        member = _load(given) if isinstance(given, Location) else given
        return member() if hasattr(member, "create") else _ClassFamily(name, member)


def _importable(module: str) -> bool:
    """Whether another process with the same module path finds the module's package."""
    top = module.partition(".")[0]
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find is not None and find(top, None) is not None for find in finders)


def _load(location: Location) -> type:
    if location.module:
        found: Any = importlib.import_module(location.module)
    else:
        found = _load_script(location)
    for name in location.name.split("."):
        found = getattr(found, name)
    return found


def _load_script(location: Location) -> types.ModuleType:
    """A module with the class and the statements of its script that it needs."""
    path = pathlib.Path(location.file)
    tree = ast.parse(path.read_bytes(), filename=str(path))
    tree.body = _needed(tree.body, location.name.partition(".")[0])
    module = types.ModuleType(f"_given_{path.stem}")
    module.__file__, module.__package__ = str(path), location.package
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module


def _needed(statements: Sequence[ast.stmt], name: str) -> list[ast.stmt]:
    """The top-level statements that bind the name or, in turn, a name that these read."""
    bound = [_bound(statement) for statement in statements]
    read = [_read(statement) for statement in statements]
    names, chosen = {name}, set[int]()
    while new := [i for i, own in enumerate(bound) if own & names and i not in chosen]:
        chosen.update(new)
        names.update(*(read[i] for i in new))
    return [
        statement
        for i, statement in enumerate(statements)
        if i in chosen
        or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
    ]


def _bound(statement: ast.AST) -> set[str]:
    """The names of the module that a statement binds."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.alias():
            return {statement.asname or statement.name.partition(".")[0]}
        case ast.Name(ctx=ast.Store()):
            return {statement.id}
    return set().union(*map(_bound, ast.iter_child_nodes(statement)))


def _read(statement: ast.AST) -> set[str]:
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
