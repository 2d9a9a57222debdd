"""A parser for a part of PDDL.

Understood: `:strips`, `:typing` (no `either`) and `:constants`. Conditions are conjunctions of
positive atoms, effects conjunctions of atoms and negated atoms. Names are read in lower case.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.pddl.strips import Atom, Domain, Problem, Schema

_TOKEN = re.compile(r"[()]|[^\s()]+")
_REQUIREMENTS = {":strips", ":typing"}
_DOMAIN_SECTIONS = {":requirements", ":types", ":constants", ":predicates", ":action"}
_PROBLEM_SECTIONS = {":requirements", ":domain", ":objects", ":init", ":goal"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Word:
    text: str
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class _List:
    items: list[_Word | _List]
    line: int


class _Reader:
    """Reads one file; every complaint names the file and the line."""

    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self.sections = self._definition(text)

    def fail(self, line: int, problem: str) -> NoReturn:
        raise UserError(f"{self._file}:{line}: {problem}")

    def _definition(self, text: str) -> list[_List]:
        """The parts of the file's one `(define ...)`."""
        whole = self._tree(text)
        if not whole.items or self.word(whole.items[0]) != "define":
            self.fail(whole.line, "expected (define ...)")
        return [self.group(item) for item in whole.items[1:]]

    def _tree(self, text: str) -> _List:
        stack = [_List([], 1)]
        line = 1
        for line, content in enumerate(text.splitlines(), start=1):
            for token in _TOKEN.findall(content.partition(";")[0].lower()):
                if token == "(":
                    stack.append(_List([], line))
                elif token == ")":
                    if len(stack) == 1:
                        self.fail(line, "this ')' closes nothing")
                    closed = stack.pop()
                    stack[-1].items.append(closed)
                else:
                    stack[-1].items.append(_Word(token, line))
        if len(stack) > 1:
            self.fail(stack[-1].line, "this '(' is never closed")
        if len(stack[0].items) != 1 or not isinstance(stack[0].items[0], _List):
            self.fail(line, "expected one (define ...)")
        return stack[0].items[0]

    def word(self, item: _Word | _List) -> str:
        if isinstance(item, _List):
            self.fail(item.line, "expected a name, found '('")
        return item.text

    def group(self, item: _Word | _List) -> _List:
        if isinstance(item, _Word) or not item.items:
            self.fail(item.line, "expected '(' and a name")
        return item

    def typed(self, items: Sequence[_Word | _List], types: Mapping | None) -> dict[str, str]:
        """Names and their types, from `a b - type c`; `types` are those declared (None: any)."""
        result: dict[str, str] = {}
        waiting: list[str] = []
        words = iter(items)
        for item in words:
            name = self.word(item)
            if name != "-":
                if name in result or name in waiting:
                    self.fail(item.line, f"{name} is declared twice")
                waiting.append(name)
                continue
            kind = self.word(next(words, None) or self.fail(item.line, "a type is missing"))
            if types is not None and kind not in types:
                self.fail(item.line, f"unknown type {kind}")
            result.update(dict.fromkeys(waiting, kind))
            waiting = []
        return result | dict.fromkeys(waiting, "object")

    def conjunction(self, item: _Word | _List) -> list[_List]:
        group = self.group(item)
        if self.word(group.items[0]) == "and":
            return [self.group(part) for part in group.items[1:]]
        return [group]

    def atom(self, item: _List, domain: Domain, names: Mapping[str, str]) -> Atom:
        """An atom over `names` (objects, and the variables of a schema)."""
        predicate = self.word(item.items[0])
        types = domain.predicates.get(predicate)
        if types is None:
            known = "only and, not in effects, and declared predicates are understood"
            self.fail(item.line, f"unknown predicate {predicate}: {known}")
        arguments = [self.word(part) for part in item.items[1:]]
        if len(types) != len(arguments):
            self.fail(item.line, f"{predicate} takes {len(types)} arguments, not {len(arguments)}")
        for name, expected in zip(arguments, types, strict=True):
            if name not in names:
                self.fail(item.line, f"{name} is not declared")
            if expected not in domain.supertypes[names[name]]:
                self.fail(item.line, f"{name} is a {names[name]}, {predicate} needs a {expected}")
        return (predicate, *arguments)


def parse_domain(text: str, file: str) -> Domain:
    """Reads a domain.

    Args:
      text: The file's content.
      file: Its name, for messages.

    Raises:
      UserError: Something is wrong or not understood; names the file and the line.
    """
    reader = _Reader(text, file)
    sections = _sections(reader, "domain", _DOMAIN_SECTIONS)
    supertypes = _supertypes(reader.typed(_items(sections, ":types"), None))
    predicates = {}
    for item in _items(sections, ":predicates"):
        name, *variables = reader.group(item).items
        predicates[reader.word(name)] = tuple(reader.typed(variables, supertypes).values())
    domain = Domain(
        name=_name(reader, "domain"),
        supertypes=supertypes,
        constants=reader.typed(_items(sections, ":constants"), supertypes),
        predicates=predicates,
        schemas={},
    )
    schemas: dict[str, Schema] = {}
    for section in sections.get(":action", ()):
        schema = _schema(reader, domain, section)
        if schema.name in schemas:
            reader.fail(section.line, f"a second action {schema.name}")
        schemas[schema.name] = schema
    return dataclasses.replace(domain, schemas=schemas)


def parse_problem(text: str, file: str, domain: Domain) -> Problem:
    """Reads a problem of the domain.

    Raises:
      UserError: As `parse_domain`; also where the problem is of another domain or has no goal.
    """
    reader = _Reader(text, file)
    sections = _sections(reader, "problem", _PROBLEM_SECTIONS)
    for section in sections.get(":domain", ()):
        if (named := " ".join(map(reader.word, section.items[1:]))) != domain.name:
            reader.fail(section.line, f"is for the domain {named}, not {domain.name}")
    declared = reader.typed(_items(sections, ":objects"), domain.supertypes)
    objects = {**declared, **domain.constants}
    init = (reader.group(item) for item in _items(sections, ":init"))
    goals = _items(sections, ":goal")
    if len(goals) > 1:
        reader.fail(goals[1].line, "a goal of several parts needs (and ...)")
    parts = reader.conjunction(goals[0]) if goals else []
    if not parts:
        reader.fail(1, "no (:goal ...) with at least one atom")
    return Problem(
        domain=domain,
        objects=objects,
        init=frozenset(reader.atom(item, domain, objects) for item in init),
        goal=tuple(dict.fromkeys(reader.atom(item, domain, objects) for item in parts)),
    )


def _sections(reader: _Reader, what: str, known: set[str]) -> dict[str, list[_List]]:
    """The parts of a definition by their keyword; `what` is checked to be defined."""
    _name(reader, what)
    sections: dict[str, list[_List]] = {}
    for section in reader.sections[1:]:
        keyword = reader.word(section.items[0])
        if keyword not in known:
            reader.fail(section.line, f"{keyword} is not understood in a {what}")
        if keyword in sections and keyword != ":action":
            reader.fail(section.line, f"a second {keyword}")
        sections.setdefault(keyword, []).append(section)
    for item in _items(sections, ":requirements"):
        if reader.word(item) not in _REQUIREMENTS:
            reader.fail(item.line, f"{reader.word(item)} is not supported, only :strips :typing")
    return sections


def _name(reader: _Reader, what: str) -> str:
    words = [reader.word(item) for section in reader.sections[:1] for item in section.items]
    if len(words) != 2 or words[0] != what:
        line = reader.sections[0].line if reader.sections else 1
        reader.fail(line, f"expected (define ({what} NAME) ...)")
    return words[1]


def _items(sections: Mapping[str, list[_List]], keyword: str) -> list[_Word | _List]:
    return [item for section in sections.get(keyword, ()) for item in section.items[1:]]


def _supertypes(parents: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Every type with itself, its parent, its parent's parent and so on up to `object`."""
    result = {}
    for name in ("object", *parents, *parents.values()):
        chain, above = {"object"}, name
        while above not in chain:
            chain.add(above)
            above = parents.get(above, "object")
        result[name] = frozenset(chain)
    return result


def _schema(reader: _Reader, domain: Domain, section: _List) -> Schema:
    name, *fields = section.items[1:] or reader.fail(section.line, "an action without a name")
    if len(fields) % 2:
        reader.fail(section.line, "expected a value for each of an action's keywords")
    values = {reader.word(k): v for k, v in zip(fields[::2], fields[1::2], strict=True)}
    for keyword in values:
        if keyword not in (":parameters", ":precondition", ":effect"):
            reader.fail(section.line, f"{keyword} is not understood in an action")
    variables = values.get(":parameters", _List([], section.line))
    if isinstance(variables, _Word):
        reader.fail(variables.line, "expected '(' after :parameters")
    parameters = reader.typed(variables.items, domain.supertypes)
    names = {**domain.constants, **parameters}
    add, delete = [], []
    for part in reader.conjunction(values.get(":effect", _List([_Word("and", 0)], 0))):
        if reader.word(part.items[0]) == "not" and len(part.items) == 2:
            delete.append(reader.atom(reader.group(part.items[1]), domain, names))
        else:
            add.append(reader.atom(part, domain, names))
    conditions = reader.conjunction(values.get(":precondition", _List([_Word("and", 0)], 0)))
    return Schema(
        name=reader.word(name),
        parameters=parameters,
        precondition=tuple(reader.atom(part, domain, names) for part in conditions),
        add=tuple(add),
        delete=tuple(delete),
    )
