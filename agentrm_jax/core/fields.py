"""Checks of a configuration's fields: numbers are finite and in range, texts can be shown."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from agentrm_jax.core.errors import UserError
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
      UserError: A field is refused; the message gives its name and its range.
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
      UserError: Lists the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise UserError(field=field, value=value, expected=f"one of {', '.join(choices)}")


def _check_number(field: str, value: int | float, interval: str | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(field=field, value=value, expected="a finite number")
    if interval is not None:
        _check_interval(field, value, interval)
    if isinstance(value, float):
        if value and not SMALLEST_NUMBER <= abs(value) <= LARGEST_NUMBER:
            limits = f"between {SMALLEST_NUMBER} and {LARGEST_NUMBER}"
            raise UserError(field=field, value=value, expected=f"0 or {limits} in size")
    elif abs(value) > LARGEST_INTEGER and (interval is None or "inf" in interval):
        raise UserError(field=field, value=value, expected=f"at most {LARGEST_INTEGER}")


def _check_interval(field: str, value: int | float, interval: str) -> None:
    match = _INTERVAL.fullmatch(interval)
    assert match is not None, interval
    low, high = float(match[2]), float(match[3])
    expected = None
    if value < low or (match[1] == "(" and value == low):
        expected = f"{'above' if match[1] == '(' else 'at least'} {match[2]}"
    elif value > high or (match[4] == ")" and value == high):
        expected = f"{'below' if match[4] == ')' else 'at most'} {match[3]}"
    if expected is not None:
        raise UserError(field=field, value=value, expected=expected)


def _check_text(field: str, text: str, *, may_be_empty: bool) -> None:
    if not text and not may_be_empty:
        raise UserError("must not be empty", field=field)
    if printable(text) != text:
        raise UserError("must not hold control characters", field=field, value=text)
    if len(text) > MAX_TEXT:
        raise UserError(f"must have at most {MAX_TEXT} characters", field=field, value=len(text))
