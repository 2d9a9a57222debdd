"""Checks of a configuration's fields: numbers are finite and in range, texts can be shown."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from agentrm_jax.core.errors import FieldError
from agentrm_jax.core.text import printable

LARGEST_INTEGER = 2**31 - 1
"""Devices count in int32."""

LARGEST_NUMBER, SMALLEST_NUMBER = 3.4e38, 1.2e-38
"""Devices compute in float32: beyond these a number becomes infinite, or zero."""

MAX_TEXT = 4096
"""Most characters of a name or a path."""

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def check_fields(config: Any, **intervals: str) -> None:
    """Refuses a configuration with a number that is not finite or out of range, or a bad text.

    Every number must be finite, and no larger than devices count or compute with. Texts hold no
    control characters, and are empty only where the field's default is.

    Args:
      config: A dataclass; configurations that it holds check themselves.
      intervals: The range of a field, for example `"[0, 1)"`. Without one the field may be any
        number that a device can hold.

    Raises:
      FieldError: Names the first such field and what it must be.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list | tuple):
            for text in texts:
                if isinstance(text, str):
                    _check_text(field.name, text, may_be_empty=field.default == "")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(field.name, value, intervals.get(field.name))


def check_choice(field: str, value: Any, choices: Iterable[str]) -> None:
    """Refuses a value that is none of the choices.

    Raises:
      FieldError: Lists the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise FieldError(field, f"must be one of {', '.join(choices)} (got {shown(value)})")


def shown(value: Any) -> str:
    """Returns a value as an error message shows it: short, printable."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python converts
        return f"a very large {type(value).__name__}"
    text = printable(text)
    if len(text) > 40:
        text = f"{text[:40]}..."
    return f"'{text}'" if isinstance(value, str) else text


def _check_number(field: str, value: int | float, interval: str | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(field, f"must be a finite number (got {value})")
    if interval is not None:
        _check_interval(field, value, interval)
    if isinstance(value, float):
        if value and not SMALLEST_NUMBER <= abs(value) <= LARGEST_NUMBER:
            limits = f"between {SMALLEST_NUMBER} and {LARGEST_NUMBER}"
            raise FieldError(field, f"must be 0 or {limits} in size (got {value})")
    elif abs(value) > LARGEST_INTEGER and (interval is None or "inf" in interval):
        raise FieldError(field, f"must be at most {LARGEST_INTEGER} (got {shown(value)})")


def _check_interval(field: str, value: int | float, interval: str) -> None:
    match = _INTERVAL.fullmatch(interval)
    assert match is not None, interval
    low, high = float(match[2]), float(match[3])
    reason = None
    if value < low or (match[1] == "(" and value == low):
        reason = f"{'above' if match[1] == '(' else 'at least'} {match[2]}"
    elif value > high or (match[4] == ")" and value == high):
        reason = f"{'below' if match[4] == ')' else 'at most'} {match[3]}"
    if reason is not None:
        raise FieldError(field, f"must be {reason} (got {shown(value)})")


def _check_text(field: str, text: str, *, may_be_empty: bool) -> None:
    if not text and not may_be_empty:
        raise FieldError(field, "must not be empty")
    if printable(text) != text:
        raise FieldError(field, f"must not hold control characters (got {shown(text)})")
    if len(text) > MAX_TEXT:
        raise FieldError(field, f"must have at most {MAX_TEXT} characters (got {len(text):,})")
