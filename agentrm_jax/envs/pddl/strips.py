"""STRIPS planning problems: the records, and all ground actions of a problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

Atom = tuple[str, ...]
"""A predicate and its arguments: object names, or `?variables` in a schema."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """An action with variables: `parameters` maps each variable to its type, in order."""

    name: str
    parameters: Mapping[str, str]
    precondition: tuple[Atom, ...]
    add: tuple[Atom, ...]
    delete: tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """`supertypes` maps a type to all types it belongs to; `predicates` to argument types."""

    name: str
    supertypes: Mapping[str, frozenset[str]]
    constants: Mapping[str, str]
    predicates: Mapping[str, tuple[str, ...]]
    schemas: Mapping[str, Schema]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """`objects` maps names to types and includes the domain's constants."""

    domain: Domain
    objects: Mapping[str, str]
    init: frozenset[Atom]
    goal: tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """A schema with objects for its variables."""

    name: str
    arguments: tuple[str, ...]
    precondition: frozenset[Atom]
    add: frozenset[Atom]
    delete: frozenset[Atom]

    def apply(self, state: frozenset[Atom]) -> frozenset[Atom]:
        """The next state: what is both deleted and added is true in it."""
        return state - self.delete | self.add


def ground(problem: Problem) -> tuple[Action, ...]:
    """All actions that can ever be possible, in a fixed order.

    That is: their objects have the right types and are all different (PDDL would allow the same
    object twice; pddlgym, whose behaviour is followed, does not), preconditions that no action
    changes are true, and the others can be reached when nothing is ever deleted.
    """
    candidates = [a for schema in problem.domain.schemas.values() for a in _bound(schema, problem)]
    reached = set(problem.init)
    possible: dict[Action, None] = {}
    while new := [a for a in candidates if a.precondition <= reached]:
        possible.update(dict.fromkeys(new))
        reached.update(atom for action in new for atom in action.add)
        candidates = [a for a in candidates if a not in possible]
    return tuple(sorted(possible, key=lambda action: (action.name, action.arguments)))


def _bound(schema: Schema, problem: Problem) -> Iterator[Action]:
    """The schema with objects for its variables, as far as types and unchanging atoms allow."""
    domain = problem.domain
    changing = {atom[0] for s in domain.schemas.values() for atom in (*s.add, *s.delete)}
    fixed = [atom for atom in schema.precondition if atom[0] not in changing]
    variables = list(schema.parameters)
    # An unchanging atom is looked up as soon as the last of its variables has an object.
    due: list[list[Atom]] = [[] for _ in variables]
    for atom in fixed:
        positions = [variables.index(name) for name in atom[1:] if name in schema.parameters]
        if positions:
            due[max(positions)].append(atom)

    def extend(binding: dict[str, str]) -> Iterator[Action]:
        depth = len(binding)
        if depth == len(variables):
            yield _instance(schema, binding)
            return
        variable = variables[depth]
        for name, kind in problem.objects.items():
            if (
                name in binding.values()
                or schema.parameters[variable] not in domain.supertypes[kind]
            ):
                continue
            longer = {**binding, variable: name}
            if all(_substituted(atom, longer) in problem.init for atom in due[depth]):
                yield from extend(longer)

    return extend({})


def _instance(schema: Schema, binding: Mapping[str, str]) -> Action:
    return Action(
        name=schema.name,
        arguments=tuple(binding.values()),
        precondition=frozenset(_substituted(atom, binding) for atom in schema.precondition),
        add=frozenset(_substituted(atom, binding) for atom in schema.add),
        delete=frozenset(_substituted(atom, binding) for atom in schema.delete),
    )


def _substituted(atom: Atom, binding: Mapping[str, str]) -> Atom:
    return (atom[0], *(binding.get(name, name) for name in atom[1:]))
