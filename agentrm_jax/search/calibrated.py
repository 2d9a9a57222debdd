"""Thresholds of methods that are chosen on training tasks."""

from __future__ import annotations

from typing import Any

from agentrm_jax.core.errors import UserError


def calibrated(method: Any, field: str) -> float:
    """Returns the value of a threshold.

    Args:
      method: A method whose class lists the field in `thresholds`.
      field: Name of the threshold.

    Raises:
      UserError: The method was given no value for it.
    """
    value = getattr(method, field)
    if value is None:
        candidates = ", ".join(f"{each:g}" for each in type(method).thresholds[field])
        raise UserError(
            f"has no value: run `agentrm calibrate`, which chooses it among {candidates} on "
            "training tasks, or set it",
            field=field,
        )
    return value
