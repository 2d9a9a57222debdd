"""Values of cells: as they are typed, and as they are shown under a number format."""

from __future__ import annotations

import functools
import math
import re
from decimal import ROUND_HALF_UP, Decimal

GENERAL = "General"
_PATTERN = re.compile(r"(#,##)?0(\.0+)?(%)?")
_TYPED = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)?(\.\d*)?(%)?")


@functools.lru_cache(maxsize=65536, typed=True)  # True is not 1.0 here
def shown(value: str | float | bool | None, number_format: str) -> str:
    """The text of a value that is no formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, str):
        return value
    pattern = _PATTERN.fullmatch(number_format)
    return _general(value) if pattern is None else _fixed(value, pattern)


def _general(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.10g}".replace("e", "E")


def _fixed(value: float, pattern: re.Match[str]) -> str:
    grouped, places, percent = pattern.groups()
    exact = Decimal(repr(float(value))) * (100 if percent else 1)
    unit = Decimal(1).scaleb(-(len(places) - 1 if places else 0))
    if abs(exact) >= Decimal(10) ** 20:
        return _general(value)
    rounded = exact.quantize(unit, rounding=ROUND_HALF_UP)
    text = f"{rounded:,f}" if grouped else f"{rounded:f}"
    return (text.removeprefix("-") if rounded == 0 else text) + (percent or "")


def typed(text: str) -> tuple[str | float | bool, str | None]:
    """Returns the value of a typed text, and its number format if it has one."""
    if text.upper() in ("TRUE", "FALSE"):
        return text.upper() == "TRUE", None
    found = _TYPED.fullmatch(text.strip())
    if found is None or not (found[2] or (found[3] and len(found[3]) > 1)):
        return text, None
    number = float((found[1] + (found[2] or "0") + (found[3] or "")).replace(",", ""))
    if not math.isfinite(number):
        return text, None
    if found[4]:
        return number / 100, "0.00%" if found[3] else "0%"
    if found[2] and "," in found[2]:
        return number, "#,##0.00" if found[3] else "#,##0"
    return number, None


def as_number(value: object) -> object:
    """AgentBoard's conversion: what Python's `float` reads is a number, whatever it was.

    Raises:
      TypeError: For what is neither a number nor a text.
      ValueError: It is not finite.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except ValueError:
        return value
    if not math.isfinite(number):
        raise ValueError("Out of range float values are not JSON compliant")
    return number
