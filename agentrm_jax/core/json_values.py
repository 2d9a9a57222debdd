"""JSON from outside, read with bounds: depth, size and the length of numbers."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 100
MAX_BYTES = 1 << 30


def parse_json(text: str | bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """Returns the value of a JSON text in which everything is finite and bounded.

    Raises:
      ValueError: It is not JSON (`json.JSONDecodeError` with the line), not UTF-8, larger than
        `max_bytes`, nested more than `MAX_DEPTH` deep, or holds a number that is not finite or
        has more digits than Python converts. The message is one line.
    """
    if len(text) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(str(error).split(";")[0].splitlines()[0]) from None
    _require_shallow(value)
    return value


def json_text(value: Any, **layout: Any) -> str:
    """Returns a value as JSON text that `parse_json` reads again.

    Lone surrogates become U+FFFD, as in `core.text.admit_text`.

    Args:
      value: What `json.dumps` takes.
      layout: `indent` and `separators` of `json.dumps`.

    Raises:
      ValueError: It holds a number that is not finite, or is nested more than `MAX_DEPTH` deep.
        The message is one line.
    """
    _require_shallow(value)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return value


def _require_shallow(value: Any) -> None:
    """Walks level by level, so that no depth exhausts the stack."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list | tuple)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
