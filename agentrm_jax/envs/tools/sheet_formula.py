"""Formulas of cells: read once as a tree, computed on the cells that they refer to."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from agentrm_jax.envs.tools.sheet_functions import called
from agentrm_jax.envs.tools.sheet_references import AREA, Area, column_number, read_area
from agentrm_jax.envs.tools.sheet_values import (
    OPERATIONS,
    FormulaError,
    Range,
    Scalar,
    compared,
    number,
    single,
)

_REFERENCE = r"(\$?)([A-Za-z]{1,3})(\$?)([1-9]\d{0,5})"
_TOKEN = re.compile(
    rf"\s*(?:(?P<area>{AREA})|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])"
    r"|(?P<text>\"(?:[^\"]|\"\")*\")|(?P<error>\#[A-Z/0!?]+)"
    r"|(?P<name>[A-Za-z][\w.]*)|(?P<sign><=|>=|<>|[-+*/^&=<>%(),;]))"
)
_LONGEST = 10_000  # characters
_DEEPEST = 64  # parentheses within parentheses, as many as Excel allows
_MOST_CELLS = 300_000  # that one formula reads
_LEVELS: Mapping[str, int] = {
    **dict.fromkeys(("=", "<>", "<", ">", "<=", ">="), 0),
    "&": 1,
    **dict.fromkeys("+-", 2),
    **dict.fromkeys("*/", 3),
    "^": 4,
}
Node = tuple[Any, ...]
Place = tuple[str, int, int]
"""Sheet, row and column of a cell, counted from 1."""


class Sheet(Protocol):
    """The sheet that formulas read: its size, and its cells as they were entered."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def entered(self, row: int, column: int) -> Any:
        """A value, or the `Formula` of a cell."""
        ...


class Formula:
    """The formula of a cell, without the equals sign."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Formula({self.text!r})"


_INHERITING = re.compile(
    rf"\s*(?:(?:SUM|AVERAGE|MAX|MIN|MINUS)\(\s*{_REFERENCE}(?![\w(!])"
    rf"|{_REFERENCE}(?:\s*[-+]\s*{_REFERENCE})*\s*$)",
    re.IGNORECASE,
)


def format_source(text: str) -> tuple[int, int] | None:
    """Row and column of the cell whose number format a result is shown in, if there is one.

    Google's sheets take it over through sums and the like, not through products: so the answers
    of AgentBoard's tasks show it.
    """
    found = _INHERITING.match(text)
    if found is None:
        return None
    first = 1 if found[2] else 5
    return int(found[first + 3]), column_number(found[first + 1])


class _Needed(Exception):
    """Formulas of other cells that have to be computed first."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places


class Book:
    """The results of the formulas of some sheets, each computed when it is first needed.

    A formula that needs another is begun again when the other is known, so that chains of any
    length take no depth of calls. Cells in a circle have the error that Google gives them.
    """

    def __init__(self, sheets: Mapping[str, Sheet]) -> None:
        self._sheets = sheets
        self._folded = {name.casefold(): name for name in sheets}
        self._results: dict[Place, Scalar | FormulaError] = {}

    def value(self, place: Place) -> Scalar:
        """The value of a cell.

        Raises:
          FormulaError: It is an error.
        """
        entered = self._sheets[place[0]].entered(*place[1:])
        if not isinstance(entered, Formula):
            return entered
        if place not in self._results:
            self._compute([place])
        result = self._results[place]
        if isinstance(result, FormulaError):
            raise FormulaError(*result.args)
        return result

    def result(self, formula: Formula, sheet: str) -> Scalar:
        """Returns the value of a formula that is in no cell; see `value`."""
        while True:
            try:
                return _Evaluation(self, sheet).result(formula.text)
            except _Needed as needed:
                self._compute(needed.places)

    def _compute(self, wanted: Iterable[Place]) -> None:
        """Computes cells; the path to a cell holds the cells that wait for it."""
        path: list[tuple[Place | None, list[Place]]] = [(None, list(wanted))]
        waiting = set()
        while path:
            place, needs = path[-1]
            while needs and needs[-1] in self._results:
                needs.pop()
            if needs:
                following = needs.pop()
                if following in waiting:
                    self._close_circle(following, path, waiting)
                else:
                    waiting.add(following)
                    path.append((following, []))
            elif place is None:
                return
            elif (found := self._evaluated(place, needs)) is not None:
                self._results[place] = None if found is _NONE else found
                waiting.discard(place)
                path.pop()

    def _evaluated(self, place: Place, needs: list[Place]) -> Any:
        """The result of a cell's formula; None if it has to wait for others, then in `needs`."""
        sheet, row, column = place
        try:
            found = _Evaluation(self, sheet).result(self._sheets[sheet].entered(row, column).text)
        except _Needed as needed:
            needs.extend(needed.places)
            return None
        except FormulaError as error:
            return error
        return _NONE if found is None else found

    def _close_circle(self, first: Place, path: list[Any], waiting: set[Place]) -> None:
        while True:
            place, _ = path.pop()
            waiting.discard(place)
            self._results[place] = FormulaError("#REF!")
            if place == first:
                return

    def area(self, area: Area, sheet: str, most: int) -> Range:
        """The values of an area.

        Raises:
          FormulaError: There is no such sheet, or the area has more than `most` cells.
          _Needed: Formulas in it are not computed yet.
        """
        name = sheet if area.sheet is None else self._folded.get(area.sheet.casefold())
        if name is None:
            raise FormulaError("#REF!")
        cells = self._sheets[name]
        top, left, bottom, right = area.box(cells.height, cells.width)
        if len(area.ends) > 1:
            bottom, right = min(bottom, cells.height), min(right, cells.width)
        if (bottom - top + 1) * (right - left + 1) > most:
            raise FormulaError("#ERROR!")
        needed: list[Place] = []
        rows = [
            [self._known((name, row, column), needed) for column in range(left, right + 1)]
            for row in range(top, bottom + 1)
        ]
        if needed:
            raise _Needed(needed)
        return Range(rows)

    def _known(self, place: Place, needed: list[Place]) -> Scalar | FormulaError:
        entered = self._sheets[place[0]].entered(*place[1:])
        if not isinstance(entered, Formula):
            return entered
        if place not in self._results:
            needed.append(place)
            return None
        return self._results[place]


_NONE = object()


class _Evaluation:
    """One formula at work."""

    def __init__(self, book: Book, sheet: str) -> None:
        self._book, self._sheet = book, sheet
        self._left = _MOST_CELLS

    def result(self, text: str) -> Scalar:
        try:
            value = single(self._value(_tree(text)))
        except ZeroDivisionError:
            raise FormulaError("#DIV/0!") from None
        return 0.0 if value is None else value

    def _value(self, node: Node) -> Any:
        match node:
            case ("value", value):
                return value
            case ("error", code):
                raise FormulaError(code)
            case ("area", area):
                found = self._book.area(area, self._sheet, self._left)
                self._left -= sum(map(len, found.rows))
                return found
            case ("call", name, arguments):
                return called(name, [functools.partial(self._value, a) for a in arguments])
            case ("sign", sign, inner):
                value = number(self._value(inner))
                return -value if sign == "-" else value
            case ("percent", inner):
                return number(self._value(inner)) / 100
        _, first, rest = node  # a chain
        value = self._value(first)
        for sign, other in rest:
            operation = OPERATIONS.get(sign) or functools.partial(compared, sign)
            value = operation(value, self._value(other))
        return value


@functools.lru_cache(maxsize=4096)
def _tree(text: str) -> Node:
    """The formula as a tree; one that cannot be read is an error."""
    try:
        return _Reader(text).read()
    except FormulaError as error:
        return ("error", *error.args)


class _Reader:
    """Operators by precedence: comparison, &, + -, * /, ^, then sign and percent."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def read(self) -> Node:
        node = self._expression()
        if self._at < len(self._tokens):
            raise FormulaError("#ERROR!")
        return node

    def _expression(self, least: int = 0) -> Node:
        """Parses operators of one level and of all higher ones; equal ones from left to right."""
        node, rest, level = self._signed(), [], -1
        while (sign := self._peek()) in _LEVELS and _LEVELS[sign] >= least:
            self._at += 1
            if _LEVELS[sign] != level:
                level, rest = _LEVELS[sign], []
                node = ("chain", node, rest)
            rest.append((sign, self._expression(level + 1)))
        return node

    def _signed(self) -> Node:
        signs = []
        while (sign := self._peek()) in ("-", "+"):
            self._at += 1
            signs.append(sign)
        node = self._atom()
        while self._taken("%"):
            node = ("percent", node)
        if "-" in signs:  # a plus changes nothing, not even a text
            node = ("sign", "-" if signs.count("-") % 2 else "+", node)
        return node

    def _atom(self) -> Node:
        if self._taken("("):
            node = self._inside()
            if not self._taken(")"):
                raise FormulaError("#ERROR!")
            return node
        if self._at == len(self._tokens):
            raise FormulaError("#ERROR!")
        kind, text = self._tokens[self._at]
        self._at += 1
        match kind:
            case "area":
                return ("area", read_area(text))
            case "number":
                return ("value", float(text)) if float(text) < 1e309 else ("error", "#NUM!")
            case "text":
                return ("value", text[1:-1].replace('""', '"'))
            case "error":
                return ("error", text)
            case "name":
                return self._called(text.upper())
        raise FormulaError("#ERROR!")

    def _called(self, name: str) -> Node:
        if not self._taken("("):
            if name in ("TRUE", "FALSE"):
                return ("value", name == "TRUE")
            return ("error", "#NAME?")
        arguments: list[Node] = []
        if self._taken(")"):
            return ("call", name, arguments)
        while True:
            empty = self._peek() in (",", ")")
            arguments.append(("value", None) if empty else self._inside())
            if self._taken(")"):
                return ("call", name, _shaped(name, arguments))
            if not self._taken(","):
                raise FormulaError("#ERROR!")

    def _inside(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise FormulaError("#ERROR!")
        node = self._expression()
        self._depth -= 1
        return node

    def _peek(self) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "sign":
            return self._tokens[self._at][1]
        return ""

    def _taken(self, sign: str) -> bool:
        found = self._peek() == sign
        self._at += found
        return found


def _shaped(name: str, arguments: list[Node]) -> list[Node]:
    """The arguments; the area that `SUMIF` adds up is as large as the one that it tests."""
    match name, arguments:
        case (("SUMIF" | "AVERAGEIF"), [("area", tested), wanted, ("area", added)]):
            return [("area", tested), wanted, ("area", added.shaped_like(tested))]
    return arguments


def _tokens(text: str) -> list[tuple[str, str]]:
    if len(text) > _LONGEST:
        raise FormulaError("#ERROR!")
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise FormulaError("#ERROR!")
        assert token.lastgroup is not None
        part = token[token.lastgroup]
        found.append((token.lastgroup, "," if part == ";" else part))  # both part arguments
        at = token.end()
    return found
