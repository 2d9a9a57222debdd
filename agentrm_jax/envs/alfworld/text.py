"""The texts of ALFWorld's games: the grammar inside a game file, read once and then played fast.

TextWorld parses the grammar; what it does with it in each step is done here in another way with the
same result: TextWorld parses rules and conditions again each time and copies all variables deeply.
An expression in the grammar may name attributes, join texts and choose with `or`; nothing else is
evaluated, so a game file cannot run code.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError

Facts = Mapping[str, set[tuple[str, ...]]]
"""Arguments of all true facts, by predicate; what an action made untrue is named `not_...`."""
Binding = Mapping[str, str]
"""Objects by the name of a variable."""
Query = tuple[tuple[str, tuple[str, ...]], ...]
"""Predicates that must be true together, each with its variables."""

_TASK_LINE = re.compile(r"Your task is to: [^\"\n]*")
_NO_TASK = "Your task is to: UNKNOWN GOAL."
# The paper's prompts (and older games) put things, the present games move them.
_PUT_IN_PLACE_OF_MOVE = (
    ("move {o} to {r}", "put {o} in/on {r}"),
    ("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."),
    ("move (object) to (receptacle):  ", "put (object) in/on (receptacle):  "),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Scene:
    """The facts that a text describes."""

    facts: Facts
    binding: Binding
    names: Mapping[str, str]


_Piece = Callable[[_Scene], str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """The texts of a game except for its task.

    Attributes:
      rules: For each symbol its productions: the first whose condition holds is taken.
      commands: For each action what an agent says.
      answers: For each action what it is answered.
    """

    rules: Mapping[str, Sequence[tuple[Query, Sequence[_Piece]]]]
    commands: Mapping[str, Sequence[_Piece]]
    answers: Mapping[str, Sequence[_Piece]]

    def room(self, facts: Facts, names: Mapping[str, str]) -> str:
        """Returns the description of the room at the beginning."""
        return _expand(self.rules, "look.feedback", _Scene(facts, {}, names))

    def command(self, action: str, binding: Binding, names: Mapping[str, str], facts: Facts) -> str:
        scene = _Scene(facts, binding, names)
        return "".join(piece(scene) for piece in self.commands[action])

    def answer(self, action: str, binding: Binding, names: Mapping[str, str], facts: Facts) -> str:
        scene = _Scene(facts, binding, names)
        return "".join(piece(scene) for piece in self.answers[action])


def task_text(grammar: str) -> str:
    """The sentence in a game's grammar that states the task."""
    found = _TASK_LINE.search(grammar)
    return found[0] if found else _NO_TASK


def read_grammar(source: str) -> Grammar:
    """The grammar of a game file, with `put ... in/on ...` in place of `move ... to ...`.

    Raises:
      UserError: It holds something that is not understood.
    """
    source = _TASK_LINE.sub(_NO_TASK, source)
    for old, new in _PUT_IN_PLACE_OF_MOVE:
        source = source.replace(old, new)
    return _read_grammar(source)


@functools.lru_cache(maxsize=8)  # all games that are known have the same one
def _read_grammar(source: str) -> Grammar:
    from textworld.envs.pddl import textgen
    from textworld.envs.pddl.logic import GameLogic

    logic: Any = GameLogic(domain="", grammar=source)
    rules: dict[str, list[tuple[Query, Sequence[_Piece]]]] = {}
    for symbol, productions in logic.grammar._rules.items():
        rules[symbol] = [
            (read_query(one.condition or ""), [_piece(rules, part) for part in one.rhs])
            for one in productions
        ]

    parse: Any = textgen._parse_and_convert

    def read(text: str) -> Sequence[_Piece]:
        parts = parse(text, rule_name="symbols")
        return [_piece(rules, part) for part in parts]

    return Grammar(
        rules=rules,
        commands={name: read(action.template) for name, action in logic.actions.items()},
        answers={name: read(action.feedback_rule) for name, action in logic.actions.items()},
    )


def read_query(text: str) -> Query:
    """`p(x:t, y:t) & q(x:t)` as predicates with variables; the types follow from the predicates."""
    found = []
    for part in filter(None, map(str.strip, text.split("&"))):
        whole = re.fullmatch(r"([\w-]+)\(([^()]*)\)", part)
        if whole is None:
            raise UserError(f"alfworld: condition {part!r} in a game's grammar is not understood")
        variables = (one.partition(":")[0].strip() for one in whole[2].split(",") if one.strip())
        found.append((whole[1], tuple(variables)))
    return tuple(found)


def matches(query: Query, facts: Facts, binding: Binding) -> Iterator[Binding]:
    """All ways to bind the query's variables, different ones to different objects, in the order
    of the objects' names."""
    if not query:
        yield binding
        return
    (predicate, variables), *rest = query
    bound = [binding.get(variable) for variable in variables]
    fitting = [
        arguments
        for arguments in facts.get(predicate, ())
        if len(arguments) == len(bound)
        and all(b is None or a == b for a, b in zip(arguments, bound, strict=True))
    ]
    for arguments in sorted(fitting):
        extended = {**binding, **dict(zip(variables, arguments, strict=True))}
        if len(set(extended.values())) == len(extended):
            yield from matches(tuple(rest), facts, extended)


def _expand(rules: Mapping[str, Any], symbol: str, scene: _Scene) -> str:
    for condition, pieces in rules[symbol]:
        if next(matches(condition, scene.facts, scene.binding), None) is not None:
            return "".join(piece(scene) for piece in pieces)
    raise UserError(f"alfworld: no rule for {symbol!r} in a game's grammar applies")


def _piece(rules: Mapping[str, Any], symbol: Any) -> _Piece:
    """A parsed symbol of TextWorld as a function; `rules` may be filled later."""
    match type(symbol).__name__:
        case "TerminalSymbol":
            text = str(symbol.symbol)
            return lambda scene: text
        case "NonterminalSymbol":
            name = str(symbol.symbol)
            return lambda scene: _expand(rules, name, scene)
        case "EvalSymbol":
            return _value(symbol.expression)
        case "ConditionalSymbol":
            each = _each(rules, symbol)
            return lambda scene: "".join(each(scene))
        case "ListSymbol":
            each = _each(rules, symbol.symbol)
            return lambda scene: _listed(rules, each(scene), scene)
        case other:
            raise UserError(f"alfworld: {other} in a game's grammar is not understood")


def _each(rules: Mapping[str, Any], symbol: Any) -> Callable[[_Scene], list[str]]:
    piece, query = _piece(rules, symbol.expression), read_query(symbol.given or "")
    return lambda scene: [
        piece(dataclasses.replace(scene, binding=binding))
        for binding in matches(query, scene.facts, scene.binding)
    ]


def _listed(rules: Mapping[str, Any], texts: Sequence[str], scene: _Scene) -> str:
    if not texts:
        return _expand(rules, "list_empty", scene)
    if len(texts) == 1:
        return texts[0]
    comma = _expand(rules, "list_separator", scene)
    last = _expand(rules, "list_last_separator", scene)
    return comma.join(texts[:-1]) + last + texts[-1]


def _value(expression: str) -> _Piece:
    """An expression such as `o.indefinite + ' ' + o.name`."""
    try:
        return _compiled(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, KeyError) as error:
        reason = f"alfworld: expression {expression!r} in a game's grammar is not understood"
        raise UserError(reason) from error


def _compiled(node: ast.expr) -> _Piece:
    match node:
        case ast.Constant(value=str() as text):
            return lambda scene: text
        case ast.Name(id=variable):
            return lambda scene: scene.names[scene.binding[variable]]
        case ast.Attribute(value=ast.Name(id=variable), attr="name"):
            return lambda scene: scene.names[scene.binding[variable]]
        case ast.Attribute(value=ast.Name(id=variable), attr="id"):
            return lambda scene: scene.binding[variable]
        case ast.Attribute(value=ast.Name(), attr="indefinite" | "definite" as article):
            word = {"indefinite": "a", "definite": "the"}[article]
            return lambda scene: word
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _compiled(left), _compiled(right)
            return lambda scene: first(scene) + second(scene)
        case ast.BoolOp(op=ast.Or(), values=values):
            choices = [_compiled(value) for value in values]
            return lambda scene: next(filter(None, (choice(scene) for choice in choices)), "")
    raise KeyError(ast.dump(node))
