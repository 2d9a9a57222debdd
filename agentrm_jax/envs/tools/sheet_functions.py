"""The functions of formulas."""

from __future__ import annotations

import decimal
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.sheet_values import (
    OPERATIONS,
    FormulaError,
    Range,
    Scalar,
    compared,
    criterion,
    equal_to,
    finite,
    integer,
    joined,
    number,
    power,
    single,
    text,
    truth,
)

Later = Callable[[], Any]
"""An argument that is computed when it is asked for."""


def numbers(given: Sequence[Any]) -> list[float]:
    """The numbers of ranges, whose texts and truth values do not count, and of other arguments,
    which have to be numbers."""
    found: list[float] = []
    for argument in given:
        if isinstance(argument, Range):
            found += [v for v in argument if isinstance(v, float)]
        elif argument is not None:
            found.append(number(argument))
    return found


def _some(given: Sequence[Any]) -> list[float]:
    if found := numbers(given):
        return found
    raise FormulaError("#NUM!")


def _average(given: Sequence[Any]) -> float:
    found = numbers(given)
    return math.fsum(found) / len(found)


def _known(given: Sequence[Later]) -> list[Any]:
    """Arguments for functions that count errors or pass them over: an error is a value."""
    found: list[Any] = []
    for argument in given:
        try:
            found.append(argument())
        except ZeroDivisionError:
            found.append(FormulaError("#DIV/0!"))
        except FormulaError as error:
            found.append(error)
    return found


def _count(given: Sequence[Later]) -> float:
    count = 0
    for argument in _known(given):
        if isinstance(argument, Range):
            count += sum(isinstance(value, float) for value in argument.everything())
        else:
            count += not isinstance(argument, FormulaError) and _is_number(argument)
    return float(count)


def _is_number(value: Any) -> bool:
    try:
        number(value)
    except FormulaError:
        return False
    return value != "" and value is not None


def _count_all(given: Sequence[Later]) -> float:
    return float(sum(value is not None for value in _everything(_known(given))))


def _everything(given: Sequence[Any]) -> Iterator[Any]:
    for argument in given:
        yield from argument.everything() if isinstance(argument, Range) else (argument,)


def _truths(given: Sequence[Any]) -> list[bool]:
    """The conditions of `AND` and `OR`; texts and empty cells of ranges do not count."""
    found = []
    for argument in given:
        if isinstance(argument, Range):
            found += [bool(v) for v in argument if isinstance(v, bool | float)]
        else:
            found.append(truth(argument))
    if not found:
        raise FormulaError("#VALUE!")
    return found


def _rounded(rounding: str) -> Callable[[Sequence[Any]], float]:
    def function(given: Sequence[Any]) -> float:
        value = number(given[0])
        places = max(-300, min(300, integer(given[1]))) if len(given) > 1 else 0
        with decimal.localcontext() as context:
            context.prec = 700
            exact = decimal.Decimal(f"{value:.15g}")  # what is shown, not its binary neighbour
            unit = decimal.Decimal(1).scaleb(-places)
            return float((exact / unit).quantize(decimal.Decimal(1), rounding=rounding) * unit)

    return function


def _modulo(given: Sequence[Any]) -> float:
    value, divisor = number(given[0]), number(given[1])
    return value - divisor * math.floor(value / divisor)


def _root(given: Sequence[Any]) -> float:
    if (value := number(given[0])) < 0:
        raise FormulaError("#NUM!")
    return math.sqrt(value)


def _ranked(descending: bool) -> Callable[[Sequence[Any]], float]:
    def function(given: Sequence[Any]) -> float:
        found = sorted(numbers(given[:1]), reverse=descending)
        place = integer(given[1])
        if not 1 <= place <= len(found):
            raise FormulaError("#NUM!")
        return found[place - 1]

    return function


def _matching(given: Sequence[Any]) -> list[Scalar | FormulaError]:
    """`SUMIF` and `AVERAGEIF`: the values next to those that fit; all of them without a third
    argument."""
    tested = _range(given[0])
    source = _range(given[2]) if len(given) > 2 else tested
    holds = criterion(given[1])
    return [
        source.rows[r][c] if r < len(source.rows) and c < len(source.rows[r]) else None
        for r, row in enumerate(tested.rows)
        for c, value in enumerate(row)
        if holds(value)
    ]


def _count_if(given: Sequence[Any]) -> float:
    holds = criterion(given[1])
    return float(sum(holds(value) for value in _range(given[0]).everything()))


def _range(value: Any) -> Range:
    if not isinstance(value, Range):
        raise FormulaError("#N/A")
    return value


def _sum_product(given: Sequence[Any]) -> float:
    ranges = [list(_range(argument)) for argument in given]
    if len({len(values) for values in ranges}) != 1:
        raise FormulaError("#VALUE!")
    return math.fsum(
        math.prod(v if isinstance(v, float) else 0.0 for v in values)
        for values in zip(*ranges, strict=True)
    )


def _look_up(given: Sequence[Any]) -> Any:
    """`VLOOKUP`: the first row that fits or, where the column is sorted, the last not beyond."""
    wanted, table, column = single(given[0]), _range(given[1]), integer(given[2])
    is_sorted = truth(given[3]) if len(given) > 3 else True
    if column < 1:
        raise FormulaError("#VALUE!")
    found, fits = None, equal_to(wanted)
    for row in table.rows:
        if not row or isinstance(row[0], FormulaError) or row[0] is None:
            continue
        if _ordered("<=", row[0], wanted) if is_sorted else fits(row[0]):
            found = row
            if not is_sorted:
                break
    if found is None:
        raise FormulaError("#N/A")
    if column > len(found):
        raise FormulaError("#REF!")
    return Range([[found[column - 1]]])


def _ordered(sign: str, value: Scalar, wanted: Scalar) -> bool:
    """Whether a value of the same kind is before or beyond the one that is looked up."""
    return type(value) is type(wanted) and compared(sign, value, wanted)


def _position(given: Sequence[Any]) -> float:
    """`MATCH` for exact matches (type 0) and for sorted values."""
    wanted, values = single(given[0]), list(_range(given[1]).everything())
    kind = integer(given[2]) if len(given) > 2 else 1
    found, fits, sign = 0, equal_to(wanted), "<=" if kind == 1 else ">="
    for place, value in enumerate(values, start=1):
        if isinstance(value, FormulaError) or value is None:
            continue
        if fits(value) if kind == 0 else _ordered(sign, value, wanted):
            found = place
            if kind == 0:
                break
    if not found:
        raise FormulaError("#N/A")
    return float(found)


def _index(given: Sequence[Any]) -> Any:
    rows = _range(given[0]).rows
    row, column = integer(given[1]), integer(given[2]) if len(given) > 2 else 1
    if len(given) == 2 and len(rows) == 1:  # the place in a single row
        row, column = 1, row
    if not (1 <= row <= len(rows) and 1 <= column <= len(rows[row - 1])):
        raise FormulaError("#REF!")
    return Range([[rows[row - 1][column - 1]]])


def _part(given: Sequence[Any]) -> str:
    begin, count = integer(given[1]), integer(given[2])
    if begin < 1 or count < 0:
        raise FormulaError("#VALUE!")
    return text(given[0])[begin - 1 : begin - 1 + count]


def _end(given: Sequence[Any]) -> int:
    count = integer(given[1]) if len(given) > 1 else 1
    if count < 0:
        raise FormulaError("#VALUE!")
    return count


def _right(given: Sequence[Any]) -> str:
    whole = text(given[0])
    return whole[max(0, len(whole) - _end(given)) :]


def _spread(given: Sequence[Any]) -> float:
    found = numbers(given)
    if len(found) < 2:
        raise FormulaError("#DIV/0!")
    return statistics.stdev(found)


def _joined(given: Sequence[Any]) -> str:
    return joined(*(text(value) for argument in given for value in _flat(argument)))


def _flat(argument: Any) -> Iterator[Scalar]:
    yield from argument if isinstance(argument, Range) else (argument,)


def _if(given: Sequence[Later]) -> Any:
    if truth(given[0]()):
        return given[1]()
    return given[2]() if len(given) > 2 else False


def _if_error(given: Sequence[Later]) -> Any:
    try:
        return single(given[0]())
    except (FormulaError, ZeroDivisionError):
        return given[1]() if len(given) > 1 else ""


def _ifs(given: Sequence[Later]) -> Any:
    for condition, value in zip(given[::2], given[1::2], strict=False):
        if truth(condition()):
            return value()
    raise FormulaError("#N/A")


def _is_error(given: Sequence[Later]) -> bool:
    try:
        single(given[0]())
    except (FormulaError, ZeroDivisionError):
        return True
    return False


def _is(kind: type) -> Callable[[Sequence[Any]], bool]:
    return lambda given: type(single(given[0])) is kind


_MANY = 10_000
LAZY: Mapping[str, tuple[int, int, Callable[[Sequence[Later]], Any]]] = {
    "IF": (2, 3, _if),
    "IFERROR": (1, 2, _if_error),
    "IFS": (2, 100, _ifs),
    "ISERROR": (1, 1, _is_error),
    "COUNT": (1, _MANY, _count),
    "COUNTA": (1, _MANY, _count_all),
}
"""Functions that do not need all arguments, or take errors: fewest, most, and what they do."""

EAGER: Mapping[str, tuple[int, int, Callable[[Sequence[Any]], Any]]] = {
    "SUM": (1, _MANY, lambda g: math.fsum(numbers(g))),
    "AVERAGE": (1, _MANY, _average),
    "COUNTBLANK": (1, _MANY, lambda g: float(sum(v in (None, "") for v in _everything(g)))),
    "COUNTIF": (2, 2, _count_if),
    "SUMIF": (2, 3, lambda g: math.fsum(numbers([Range([_matching(g)])]))),
    "AVERAGEIF": (2, 3, lambda g: _average([Range([_matching(g)])])),
    "SUMPRODUCT": (1, 30, _sum_product),
    "MAX": (1, _MANY, lambda g: max(numbers(g), default=0.0)),
    "MIN": (1, _MANY, lambda g: min(numbers(g), default=0.0)),
    "MEDIAN": (1, _MANY, lambda g: statistics.median(_some(g))),
    "STDEV": (1, _MANY, _spread),
    "LARGE": (2, 2, _ranked(True)),
    "SMALL": (2, 2, _ranked(False)),
    "PRODUCT": (1, _MANY, lambda g: math.prod(found) if (found := numbers(g)) else 0.0),
    "ADD": (2, 2, lambda g: OPERATIONS["+"](*g)),
    "MINUS": (2, 2, lambda g: OPERATIONS["-"](*g)),
    "MULTIPLY": (2, 2, lambda g: OPERATIONS["*"](*g)),
    "DIVIDE": (2, 2, lambda g: OPERATIONS["/"](*g)),
    "ROUND": (1, 2, _rounded(decimal.ROUND_HALF_UP)),
    "ROUNDUP": (1, 2, _rounded(decimal.ROUND_UP)),
    "ROUNDDOWN": (1, 2, _rounded(decimal.ROUND_DOWN)),
    "INT": (1, 1, lambda g: float(math.floor(number(g[0])))),
    "ABS": (1, 1, lambda g: abs(number(g[0]))),
    "MOD": (2, 2, _modulo),
    "POWER": (2, 2, lambda g: power(number(g[0]), number(g[1]))),
    "SQRT": (1, 1, _root),
    "AND": (1, _MANY, lambda g: all(_truths(g))),
    "OR": (1, _MANY, lambda g: any(_truths(g))),
    "NOT": (1, 1, lambda g: not truth(g[0])),
    "TRUE": (0, 0, lambda g: True),
    "FALSE": (0, 0, lambda g: False),
    "ISBLANK": (1, 1, lambda g: single(g[0]) is None),
    "ISNUMBER": (1, 1, _is(float)),
    "ISTEXT": (1, 1, _is(str)),
    "CONCATENATE": (1, _MANY, _joined),
    "CONCAT": (1, _MANY, _joined),
    "LEN": (1, 1, lambda g: float(len(text(g[0])))),
    "UPPER": (1, 1, lambda g: text(g[0]).upper()),
    "LOWER": (1, 1, lambda g: text(g[0]).lower()),
    "TRIM": (1, 1, lambda g: " ".join(part for part in text(g[0]).split(" ") if part)),
    "LEFT": (1, 2, lambda g: text(g[0])[: _end(g)]),
    "RIGHT": (1, 2, _right),
    "MID": (3, 3, _part),
    "VALUE": (1, 1, lambda g: number(g[0])),
    "VLOOKUP": (3, 4, _look_up),
    "MATCH": (2, 3, _position),
    "INDEX": (2, 3, _index),
}  # fmt: skip
"""All others, with their arguments computed."""


def called(name: str, given: Sequence[Later]) -> Any:
    """Returns the value of a function.

    Raises:
      FormulaError: There is no such function, the arguments do not fit, or they hold an error.
    """
    fewest, most, function = LAZY.get(name) or EAGER.get(name) or (0, -1, None)
    if function is None:
        raise FormulaError("#NAME?")
    if not fewest <= len(given) <= most:
        raise FormulaError("#N/A")
    if name in LAZY:
        return function(given)
    try:
        value = function([argument() for argument in given])
    except (OverflowError, ValueError):  # of sums of infinities, too
        raise FormulaError("#NUM!") from None
    return finite(value) if isinstance(value, float) else value
