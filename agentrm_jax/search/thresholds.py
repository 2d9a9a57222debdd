"""Thresholds of test-time methods: fields whose value is chosen on training tasks.

A method names them in a class variable `thresholds`, from the name of a field to the values that
`agentrm calibrate` tries. The default of such a field is None, which stands for the chosen value.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError


def open_thresholds(method: Any) -> dict[str, tuple[float, ...]]:
    """Returns the candidate values of each threshold of a method that has no value.

    Args:
      method: A test-time method.

    Raises:
      UserError: The method names a threshold that is not one of its fields, or without candidates.
    """
    found = {}
    for name, values in getattr(method, "thresholds", {}).items():
        if not hasattr(method, name) or not values:
            raise UserError(
                f"{type(method).__qualname__}.thresholds must map fields of the method to values "
                f"to try (got {name}: {values})"
            )
        if getattr(method, name) is None:
            found[name] = tuple(values)
    return found


def check_thresholds(method: Any) -> None:
    """Refuses to run a method with a threshold that has no value.

    Args:
      method: A test-time method.

    Raises:
      UserError: Names the first such field, the command that chooses its value, and an example.
    """
    for name, values in open_thresholds(method).items():
        raise UserError(
            "has no value; run `agentrm calibrate`, which chooses one on training tasks, or set "
            f"it, for example to {values[len(values) // 2]}",
            field=name,
        )


def threshold_candidates(method: Any) -> list[Mapping[str, float]]:
    """Returns the settings of a method's thresholds to try, of several thresholds all combinations.

    Args:
      method: A test-time method.

    Returns:
      A value for each threshold without one, by name; an empty list if there are none.
    """
    names_and_values = open_thresholds(method)
    if not names_and_values:
        return []
    combinations = itertools.product(*names_and_values.values())
    return [dict(zip(names_and_values, values, strict=True)) for values in combinations]
