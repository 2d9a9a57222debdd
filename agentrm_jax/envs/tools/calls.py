"""Actions of the tool environments: `name with Action Input: {arguments}`.

AgentBoard hands the arguments to Python's `eval`. Here they are read from the syntax tree, and only
values are understood: literals of Python and JSON, sums and products of numbers, and
`re.compile("...")`, which AgentBoard's own tasks use in a search.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_ACTION = re.compile(r"\s*(.*?)\s*with\s*Action Input:\s*(.*?)\s*\Z", re.DOTALL)
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
_MOST_REPEATS, _LONGEST_PATTERN = 3, 200

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
    """What an agent is told of a tool."""

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
    found = _ACTION.fullmatch(action)
    if found is None:
        raise ToolError(FORMAT_ERROR)
    try:
        return Call(found[1], _value(found[2]))
    except (ValueError, SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError):
        raise ToolError(f"ERROR | Exception({_NOT_VALID})") from None


def call_key(action: str) -> str:
    """Returns the normal form of an action: the tool's name and the values that it is given.

    Blanks and quotes within the syntax do not count; names, values and their order do.
    """
    try:
        call = read_call(action)
        return f"call {call.name} {call.arguments!r}"
    except (ToolError, ValueError):  # no call, or an integer that is too long to be written
        return f"text {action.strip()}"


def _value(text: str) -> Any:
    if len(text) > _LONGEST:
        raise ValueError("too long")
    return _of(ast.parse(text, mode="eval").body)


def _of(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List() | ast.Set():
            return [_of(element) for element in node.elts]
        case ast.Tuple():
            return tuple(_of(element) for element in node.elts)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_of(key): _of(value) for key, value in pairs if key is not None}
        case ast.UnaryOp():
            return _number(_OPERATORS[type(node.op)], node.operand)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _number(_OPERATORS[type(node.op)], node.left, node.right)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="re"), attr="compile"),
            args=[argument],
            keywords=[],
        ):
            return compiled(_of(argument))
    raise ValueError("not a value")


def _number(operation: Callable[..., Any], *operands: ast.expr) -> float:
    numbers = [_of(operand) for operand in operands]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("not numbers")
    result = operation(*numbers)
    if not math.isfinite(result):  # raises for an integer that is beyond all floats
        raise ArithmeticError("too large")
    return result


def compiled(pattern: Any) -> re.Pattern[str]:
    """A regular expression that cannot take long on a cell's text.

    Raises:
      ValueError: It is none, or might: a repeated group, or many repeats.
    """
    if not isinstance(pattern, str) or len(pattern) > _LONGEST_PATTERN:
        raise ValueError("not a short string")
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "c", pattern)
    if re.search(r"\)\s*[*+{?]", plain) or len(re.findall(r"[*+{]", plain)) > _MOST_REPEATS:
        raise ValueError("too many repeats")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from None


def error_text(error: Exception) -> str:
    """How AgentBoard answers where a tool raises."""
    return f"ERROR | {type(error).__name__}({error})"
