"""Values of formulas and how one kind becomes another, as Google's sheets do it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.patterns import Pattern, PatternError
from agentrm_jax.envs.tools.sheet_numbers import typed

Scalar = str | float | bool | None
LONGEST_TEXT = 50_000
"""Characters of a cell, as in Google's sheets."""
_EXPONENT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")


class FormulaError(Exception):
    """The value of a cell is an error: `#N/A`, `#DIV/0!`, ..."""


class Range:
    """The cells of an area in rows; a cell may hold an error."""

    def __init__(self, rows: Sequence[Sequence[Scalar | FormulaError]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Scalar]:
        """All values, row after row. Raises the first error."""
        for value in self.everything():
            if isinstance(value, FormulaError):
                raise FormulaError(*value.args)
            yield value

    def everything(self) -> Iterator[Scalar | FormulaError]:
        """All values and errors, row after row."""
        for row in self.rows:
            yield from row


def single(value: Any) -> Scalar:
    """The one value of a range of one cell, or the value itself."""
    if not isinstance(value, Range):
        return value
    values = list(value)
    if len(values) != 1:
        raise FormulaError("#VALUE!")
    return values[0]


def number(value: Any) -> float:
    """A value as a number; an empty cell is 0, a text must be one."""
    value = single(value)
    if value is None or value == "":
        return 0.0
    if isinstance(value, str):
        return number_of(value)
    return float(value)


def number_of(text: str) -> float:
    """The number that a text writes, as when it is typed."""
    stripped = text.strip()
    value = float(stripped) if _EXPONENT.fullmatch(stripped) else typed(text)[0]
    if isinstance(value, bool | str):
        raise FormulaError("#VALUE!")
    return finite(value)


def finite(value: float) -> float:
    if not math.isfinite(value):
        raise FormulaError("#NUM!")
    return value


def truth(value: Any) -> bool:
    """A value as a condition."""
    value = single(value)
    if isinstance(value, str):
        if value.upper() in ("TRUE", "FALSE"):
            return value.upper() == "TRUE"
        raise FormulaError("#VALUE!")
    return bool(value)


def text(value: Any) -> str:
    """A value as text: numbers with up to 15 digits."""
    value = single(value)
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        if value == int(value) and abs(value) < 1e15:
            return str(int(value))
        return f"{value:.15g}".upper()
    return value or ""


def joined(*texts: str) -> str:
    """Texts one after the other, at most as long as a cell may be."""
    if sum(map(len, texts)) > LONGEST_TEXT:
        raise FormulaError("#VALUE!")
    return "".join(texts)


def integer(value: Any) -> int:
    return int(min(max(number(value), -1e9), 1e9))


def _ranks(one: Scalar, other: Scalar) -> tuple[tuple[int, Any], tuple[int, Any]]:
    """Both as what can be compared: numbers, then texts, then truth values; case does not matter.

    An empty cell is equal to 0, to an empty text and to FALSE.
    """
    if one is None:
        one = _empty_like(other)
    if other is None:
        other = _empty_like(one)
    return _rank(one), _rank(other)


def _empty_like(value: Scalar) -> Scalar:
    return False if isinstance(value, bool) else "" if isinstance(value, str) else 0.0


def _rank(value: Scalar) -> tuple[int, Any]:
    if isinstance(value, bool):
        return 2, value
    if isinstance(value, str):
        return 1, value.casefold()
    return 0, value if value is None else float(f"{value:.15g}")  # 0.1+0.2 is 0.3 in a sheet


def compared(sign: str, one: Any, other: Any) -> bool:
    """Returns the result of `=`, `<>`, `<`, `>`, `<=` or `>=`."""
    first, second = _ranks(single(one), single(other))
    match sign:
        case "=":
            return first == second
        case "<>":
            return first != second
        case "<":
            return first < second
        case ">":
            return first > second
        case "<=":
            return first <= second
    return first >= second


def power(base: float, exponent: float) -> float:
    try:
        result = base**exponent
    except OverflowError:
        raise FormulaError("#NUM!") from None
    if isinstance(result, complex):
        raise FormulaError("#NUM!")
    return result


OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: finite(number(a) + number(b)),
    "-": lambda a, b: finite(number(a) - number(b)),
    "*": lambda a, b: finite(number(a) * number(b)),
    "/": lambda a, b: finite(number(a) / number(b)),
    "^": lambda a, b: finite(power(number(a), number(b))),
    "&": lambda a, b: joined(text(a), text(b)),
}


def criterion(wanted: Any) -> Callable[[Scalar | FormulaError], bool]:
    """The condition of `COUNTIF` and the like: a value, or a text such as `>5`, `<>x`, `a*`."""
    wanted = single(wanted)
    if not isinstance(wanted, str):
        return lambda value: not isinstance(value, FormulaError) and _same_number(value, wanted)
    found = re.match(r"<=|>=|<>|=|<|>", wanted)
    sign = found[0] if found else "="
    operand = wanted[len(found[0]) :] if found else wanted
    try:
        wanted_number: float | None = number_of(operand)
    except FormulaError:
        wanted_number = None

    fits = _like(operand.casefold())

    def holds(value: Scalar | FormulaError) -> bool:
        if isinstance(value, FormulaError):
            return False
        if sign in ("=", "<>"):
            if wanted_number is not None:
                same = _same_number(value, wanted_number)
            elif operand == "":
                same = value is None or value == ""
            elif operand.upper() in ("TRUE", "FALSE"):
                same = value is (operand.upper() == "TRUE")
            else:
                same = isinstance(value, str) and fits(value.casefold())
            return same == (sign == "=")
        if wanted_number is not None:
            numeric = isinstance(value, float) and not isinstance(value, bool)
            return numeric and compared(sign, value, wanted_number)
        return isinstance(value, str) and compared(sign, value, operand)

    return holds


def equal_to(wanted: Scalar) -> Callable[[Scalar], bool]:
    """The condition of an exact look-up: an equal value; `?` and `*` of a text stand for others."""
    if not isinstance(wanted, str):
        return lambda value: compared("=", value, wanted)
    fits = _like(wanted.casefold())
    return lambda value: isinstance(value, str) and fits(value.casefold())


def _same_number(value: Scalar, wanted: Scalar) -> bool:
    if isinstance(value, str) and isinstance(wanted, float):
        try:
            return number_of(value) == wanted
        except FormulaError:
            return False
    return value is not None and compared("=", value, wanted)


def _like(wanted: str) -> Callable[[str], bool]:
    """Whether a text fits a pattern with `?` and `*`; `~` takes their meaning away."""
    parts = re.findall(r"~[*?~]|.", wanted, re.DOTALL)
    if not {"*", "?"} & set(parts):
        plain = "".join(part[-1] for part in parts)
        return lambda value: value == plain
    kinds = {"*": ".*", "?": "."}
    pattern = "".join(kinds[p] if p in kinds else re.escape(p[-1]) for p in parts)
    try:
        search = Pattern(f"(?s){pattern}").searcher(whole=True)
    except PatternError:
        raise FormulaError("#VALUE!") from None

    def fits(value: str) -> bool:
        try:
            return search(value)
        except PatternError:
            raise FormulaError("#VALUE!") from None

    return fits
