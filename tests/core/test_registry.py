"""Names of open lists that are taken."""

from __future__ import annotations

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.registry import Registry


def shape(scale: int) -> type:
    class Shape:
        size = scale

    return Shape


def test_a_name_is_replaced_by_the_same_object_only() -> None:
    shapes: Registry[type] = Registry("agentrm_jax.tests_of_registries", "shape")
    first, again = shape(1), shape(2)
    shapes.register("square")(first)
    shapes.register("square")(again)  # as a notebook cell that runs twice
    assert shapes.load("square") is again
    with pytest.raises(UserError, match=r"shape 'square' is registered already, by .*\.Shape; "):
        shapes.register("square")(Registry)
    assert shapes.load("square") is again
