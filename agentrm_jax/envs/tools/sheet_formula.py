"""Formulas of cells: the operators, a few functions, and references that follow their cells."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

_REFERENCE = r"(\$?)([A-Za-z]{1,3})(\$?)([1-9]\d{0,5})"
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*|\.\d+)|(?P<text>\"(?:[^\"]|\"\")*\")|(?P<error>\#[A-Z/0!?]+)"
    r"|(?P<reference>\$?[A-Za-z]{1,3}\$?[1-9]\d{0,5})(?![\w(.])|(?P<name>[A-Za-z][\w.]*)"
    r"|(?P<sign><=|>=|<>|[-+*/^&=<>%():,]))"
)
_LONGEST = 500  # characters
_DEEPEST = 40  # formulas that wait for others
Scalar = str | float | bool | None


class FormulaError(Exception):
    """The value of a cell is an error: `#N/A`, `#DIV/0!`, ..."""


class Cells(Protocol):
    """Where references are looked up; counted from 1."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def value(self, row: int, column: int, depth: int) -> Scalar:
        """Raises a `FormulaError` where the cell holds an error."""
        ...


_INHERITING = re.compile(
    rf"\s*(?:(?:SUM|AVERAGE|MAX|MIN|MINUS)\(\s*{_REFERENCE}(?![\w(])"
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


def evaluate(text: str, cells: Cells, depth: int = 0) -> Scalar:
    """The value of a formula (without its equals sign).

    Raises:
      FormulaError: It has none.
    """
    if depth > _DEEPEST:
        raise FormulaError("#REF!")  # it depends on itself
    try:
        value = _Reader(text, cells, depth).read()
    except (ZeroDivisionError, OverflowError):
        raise FormulaError("#DIV/0!") from None
    except RecursionError:
        raise FormulaError("#ERROR!") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise FormulaError("#NUM!")
    return 0.0 if value is None else value


class _Range(list[Scalar]):
    """The cells of a range, one after the other."""


class _Reader:
    """Recursive descent: comparison, &, + -, * /, ^, sign, percent."""

    def __init__(self, text: str, cells: Cells, depth: int) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._cells, self._depth = cells, depth

    def read(self) -> Scalar:
        value = _single(self._comparison())
        if self._at < len(self._tokens):
            raise FormulaError("#ERROR!")
        return value

    def _sign(self, *signs: str) -> str:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "sign" and text in signs:
                self._at += 1
                return text
        return ""

    def _chain(self, below: Callable[[], Any], operations: Mapping[str, Callable[..., Any]]) -> Any:
        value = below()
        while sign := self._sign(*operations):
            value = operations[sign](_single(value), _single(below()))
        return value

    def _comparison(self) -> Any:
        return self._chain(self._joined, _COMPARISONS)

    def _joined(self) -> Any:
        return self._chain(self._sum, {"&": lambda a, b: _text(a) + _text(b)})

    def _sum(self) -> Any:
        plus = {"+": lambda a, b: _number(a) + _number(b)}
        return self._chain(self._product, {**plus, "-": lambda a, b: _number(a) - _number(b)})

    def _product(self) -> Any:
        times = {"*": lambda a, b: _number(a) * _number(b)}
        return self._chain(self._power, {**times, "/": lambda a, b: _number(a) / _number(b)})

    def _power(self) -> Any:
        return self._chain(self._signed, {"^": lambda a, b: _power(_number(a), _number(b))})

    def _signed(self) -> Any:
        if sign := self._sign("-", "+"):
            value = _number(_single(self._signed()))
            return -value if sign == "-" else value
        value = self._atom()
        while self._sign("%"):
            value = _number(_single(value)) / 100
        return value

    def _atom(self) -> Any:
        if self._sign("("):
            value = self._comparison()
            if not self._sign(")"):
                raise FormulaError("#ERROR!")
            return value
        if self._at == len(self._tokens):
            raise FormulaError("#ERROR!")
        kind, text = self._tokens[self._at]
        self._at += 1
        match kind:
            case "number":
                return float(text)
            case "text":
                return text[1:-1].replace('""', '"')
            case "error":
                raise FormulaError(text)
            case "reference":
                return self._cell(text)
            case "name":
                return self._called(text.upper())
        raise FormulaError("#ERROR!")

    def _cell(self, text: str) -> Any:
        row, column = _position(text)
        if not self._sign(":"):
            return self._value(row, column)
        if self._at == len(self._tokens) or self._tokens[self._at][0] != "reference":
            raise FormulaError("#ERROR!")
        last_row, last_column = _position(self._tokens[self._at][1])
        self._at += 1
        rows, columns = sorted((row, last_row)), sorted((column, last_column))
        return _Range(
            self._value(r, c)
            for r in range(rows[0], min(rows[1], self._cells.height) + 1)
            for c in range(columns[0], min(columns[1], self._cells.width) + 1)
        )

    def _value(self, row: int, column: int) -> Scalar:
        return self._cells.value(row, column, self._depth + 1)

    def _called(self, name: str) -> Any:
        if not self._sign("("):
            if name in ("TRUE", "FALSE"):
                return name == "TRUE"
            raise FormulaError("#NAME?")
        arguments: list[Any] = []
        if not self._sign(")"):
            arguments.append(self._comparison())
            while self._sign(","):
                arguments.append(self._comparison())
            if not self._sign(")"):
                raise FormulaError("#ERROR!")
        if name not in _FUNCTIONS:
            raise FormulaError("#NAME?")
        return _FUNCTIONS[name](arguments)


@functools.lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[tuple[str, str], ...]:
    if len(text) > _LONGEST:
        raise FormulaError("#ERROR!")
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise FormulaError("#ERROR!")
        assert token.lastgroup is not None
        found.append((token.lastgroup, token[token.lastgroup]))
        at = token.end()
    return tuple(found)


def _position(reference: str) -> tuple[int, int]:
    found = re.fullmatch(_REFERENCE, reference)
    assert found is not None
    return int(found[4]), column_number(found[2])


def column_number(letters: str) -> int:
    """`A` is 1, `AA` is 27."""
    return functools.reduce(lambda n, letter: 26 * n + ord(letter) - 64, letters.upper(), 0)


def column_letters(number: int) -> str:
    """1 is `A`, 27 is `AA`."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def _single(value: Any) -> Scalar:
    if isinstance(value, _Range):
        if len(value) != 1:
            raise FormulaError("#VALUE!")
        return value[0]
    return value


def _number(value: Scalar) -> float:
    if value is None or value == "":
        return 0.0
    try:
        return float(value)
    except ValueError:
        raise FormulaError("#VALUE!") from None


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return f"{value:.10g}"
    return value or ""


def _power(base: float, exponent: float) -> float:
    result = base**exponent
    if isinstance(result, complex):
        raise FormulaError("#NUM!")
    return result


def _rank(value: Scalar) -> tuple[int, Any]:
    """Numbers come before texts, texts before truth values; case does not matter."""
    if isinstance(value, bool):
        return 2, value
    if isinstance(value, str):
        return 1, value.casefold()
    return 0, value or 0.0


_COMPARISONS: Mapping[str, Callable[..., bool]] = {
    "=": lambda a, b: _rank(a) == _rank(b),
    "<>": lambda a, b: _rank(a) != _rank(b),
    "<": lambda a, b: _rank(a) < _rank(b),
    ">": lambda a, b: _rank(a) > _rank(b),
    "<=": lambda a, b: _rank(a) <= _rank(b),
    ">=": lambda a, b: _rank(a) >= _rank(b),
}


def _flat(arguments: Iterable[Any]) -> list[float]:
    """The numbers of ranges, and the arguments themselves as numbers."""
    found: list[float] = []
    for argument in arguments:
        if isinstance(argument, _Range):
            found += [float(v) for v in argument if isinstance(v, float) and v is not True]
        elif argument is not None:
            found.append(_number(argument))
    return found


def _average(arguments: list[Any]) -> float:
    numbers = _flat(arguments)
    return math.fsum(numbers) / len(numbers)


def _minus(arguments: list[Any]) -> float:
    if len(arguments) != 2:
        raise FormulaError("#N/A")
    return _number(_single(arguments[0])) - _number(_single(arguments[1]))


def _rounded(arguments: list[Any]) -> float:
    value, places = _number(_single(arguments[0])), 0
    if len(arguments) > 1:
        places = max(-300, min(300, int(_number(_single(arguments[1])))))
    scale = 10.0**places
    return math.copysign(math.floor(abs(value) * scale + 0.5), value) / scale


def _if(arguments: list[Any]) -> Any:
    if not 2 <= len(arguments) <= 3:
        raise FormulaError("#N/A")
    chosen = bool(_single(arguments[0]))
    return arguments[1] if chosen else arguments[2] if len(arguments) == 3 else False


_FUNCTIONS: Mapping[str, Callable[[list[Any]], Any]] = {
    "SUM": lambda given: math.fsum(_flat(given)),
    "AVERAGE": _average,
    "COUNT": lambda given: float(len(_flat(given))),
    "COUNTA": lambda given: float(
        sum(sum(v is not None for v in a) if isinstance(a, _Range) else 1 for a in given)
    ),
    "MAX": lambda given: max(_flat(given), default=0.0),
    "MIN": lambda given: min(_flat(given), default=0.0),
    "PRODUCT": lambda given: math.prod(numbers) if (numbers := _flat(given)) else 0.0,
    "MINUS": _minus,
    "ROUND": _rounded,
    "ABS": lambda given: abs(_number(_single(given[0]))),
    "IF": _if,
}


def moved(text: str, rows: int) -> str:
    """A formula after its cell moved down by so many rows, as when a sheet is sorted."""

    def shift(found: re.Match[str]) -> str:
        fixed_column, column, fixed_row, row = found.groups()
        new = int(row) if fixed_row else int(row) + rows
        return f"{fixed_column}{column}{fixed_row}{new}" if new > 0 else "#REF!"

    return _each_reference(text, shift)


def after_insertion(text: str, axis: int, at: int, count: int) -> str:
    """A formula after rows (axis 0) or columns (axis 1) were put in before `at`."""

    def shift(found: re.Match[str]) -> str:
        place = _places(found)
        if place[axis] >= at:
            place[axis] += count
        return _written(found, place)

    return _each_reference(text, shift)


def after_deletion(text: str, axis: int, at: int) -> str:
    """A formula after row or column `at` was deleted; a range that loses an end gets shorter."""

    def of_range(found: re.Match[str]) -> str:
        ends = [re.fullmatch(_REFERENCE, end) for end in found[0].split(":")]
        places = [_places(end) for end in ends if end is not None]
        if len(places) == 2 and places[0][axis] == places[1][axis] == at:
            return "#REF!"
        if len(places) == 1 and places[0][axis] == at:
            return "#REF!"
        for number, place in enumerate(places):
            if place[axis] > at or (place[axis] == at and number == 1):
                place[axis] -= 1
        written = [_written(e, p) for e, p in zip(ends, places, strict=True) if e is not None]
        return ":".join(written)

    return _each(rf"{_REFERENCE}(?::{_REFERENCE})?(?![\w(])", text, of_range)


def _each_reference(text: str, change: Callable[[re.Match[str]], str]) -> str:
    return _each(rf"{_REFERENCE}(?![\w(])", text, change)


def _each(pattern: str, text: str, change: Callable[[re.Match[str]], str]) -> str:
    """Changes references outside of quoted texts."""
    parts: Sequence[str] = re.split(r'("(?:[^"]|"")*")', text)
    return "".join(
        part if part.startswith('"') else re.sub(rf"(?<![\w.]){pattern}", change, part)
        for part in parts
    )


def _places(found: re.Match[str]) -> list[int]:
    return [int(found[4]), column_number(found[2])]


def _written(found: re.Match[str], place: Sequence[int]) -> str:
    return f"{found[1]}{column_letters(place[1])}{found[3]}{place[0]}"
