r"""Actions of the tool environments: `name with Action Input: {arguments}`.

AgentBoard hands the arguments to Python's `eval`. Here they are read from the syntax tree, and only
values are understood: literals of Python and JSON, sums and products of numbers, and
`re.compile("...")`, which AgentBoard's own tasks use in a search. Escapes in texts are those of
both languages, whatever the quotes: `"\ud83d\ude00"` is one character, `"\/"` is a slash.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from agentrm_jax.core.text import admit_text
from agentrm_jax.envs.tools.patterns import Pattern, PatternError

_INPUT = re.compile(r"with\s*Action Input:")
_OPENING = re.compile(r"#[^\n]*|\"\"\"|'''|[\"']")
_BODIES = {
    quote: re.compile(rf"(?:[^\\{quote[0]}]|\\.{inner})*", re.DOTALL)
    for quote, inner in (('"', ""), ("'", ""), ('"""', '|"(?!"")'), ("'''", "|'(?!'')"))
}
_RAW = re.compile(r"[rR][bBfF]?$")  # before a quote
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = frozenset("\n\\'\"abfnrtvNuUx01234567")  # Python's
_DEEPEST = 100  # values within values
_LONGEST = 20_000  # characters
_NAMES = {"true": True, "false": False, "null": None}
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}

# AgentBoard's own sentences.
FORMAT_ERROR = (
    'Format error, please response in the format of  "Action: [your action] with Action Input: '
    "[your action input]"
)
_NOT_VALID = "Parameters in action input are not valid, please change your action input."


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A tool's name and what it is given: mostly a dictionary, but an agent may say anything."""

    name: str
    arguments: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """The description of a tool that the agent reads."""

    name: str
    parameters: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.parameters)}): {self.text}"


class ToolError(Exception):
    """A tool cannot do what it was asked for; the message is the whole answer."""


def read_call(action: str) -> Call:
    """The call that an action is.

    Raises:
      ToolError: It is none.
    """
    found = _INPUT.search(action)
    if found is None:
        raise ToolError(FORMAT_ERROR)
    try:
        return Call(action[: found.start()].strip(), _value(action[found.end() :].strip()))
    except PatternError as error:
        raise ToolError(f"ERROR | Exception({_NOT_VALID} {error})") from None
    except (ValueError, SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError):
        raise ToolError(f"ERROR | Exception({_NOT_VALID})") from None


def call_key(action: str) -> str:
    """Returns the normal form of an action: the tool's name and the values that it is given.

    Blanks and quotes within the syntax do not count; names, values and their order do.
    """
    try:
        call = read_call(action)
        return f"call {call.name!r} {call.arguments!r}"
    except (ToolError, ValueError):  # no call, or an integer that is too long to be written
        return f"text {action.strip()}"


def _value(text: str) -> Any:
    if len(text) > _LONGEST:
        raise ValueError("too long")
    return _of(ast.parse(_python_escapes(text), mode="eval").body)


def _python_escapes(text: str) -> str:
    r"""The text with JSON's `\/` as `/`, and a backslash that escapes nothing as `\\`.

    The latter is what Python makes of it, after a warning. Texts such as r"..." stay as they are.
    """
    if "\\" not in text:
        return text
    parts, at = [], 0
    while opening := _OPENING.search(text, at):
        begin, quote = opening.end(), opening[0]
        parts.append(text[at:begin])
        at = begin
        if quote in _BODIES:
            body = _BODIES[quote].match(text, begin)
            assert body is not None  # it may be empty
            raw = _RAW.search(text, max(0, opening.start() - 2), opening.start()) is not None
            parts.append(body[0] if raw else _ESCAPE.sub(_escape, body[0]))
            at = body.end() + len(quote)
            parts.append(text[body.end() : at])
    return "".join([*parts, text[at:]])


def _escape(found: re.Match[str]) -> str:
    if found[1] == "/":
        return "/"
    return found[0] if found[1] in _ESCAPES else "\\" + found[0]


def _of(node: ast.expr, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    depth += 1
    match node:
        case ast.Constant(value=str() as text):
            return admit_text(text)  # two halves of a character become one
        case ast.Constant(value=int() | float() | None):
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List() | ast.Set():
            return [_of(element, depth) for element in node.elts]
        case ast.Tuple():
            return tuple(_of(element, depth) for element in node.elts)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_of(key, depth): _of(value, depth) for key, value in pairs if key is not None}
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _number(_OPERATORS[type(node.op)], depth, node.operand)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _number(_OPERATORS[type(node.op)], depth, node.left, node.right)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="re"), attr="compile"),
            args=[argument],
            keywords=[],
        ):
            pattern = _of(argument, depth)
            if not isinstance(pattern, str):
                raise TypeError("not a pattern")
            return Pattern(pattern)
    raise ValueError("not a value")


def _number(operation: Callable[..., Any], depth: int, *operands: ast.expr) -> float:
    numbers = [_of(operand, depth) for operand in operands]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("not numbers")
    result = operation(*numbers)
    if not math.isfinite(result):  # raises for an integer that is beyond all floats
        raise ArithmeticError("too large")
    return result


def error_text(error: Exception) -> str:
    """Returns AgentBoard's answer if a tool raises."""
    return f"ERROR | {type(error).__name__}({error})"
