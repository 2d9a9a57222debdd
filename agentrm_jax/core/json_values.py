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
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
