"""Names of open lists that are taken."""

from __future__ import annotations

import sys

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


def test_a_script_that_is_imported_again_under_another_name_replaces_its_objects(
    monkeypatch,
) -> None:
    shapes: Registry[type] = Registry("agentrm_jax.tests_of_registries", "shape")
    as_script, as_plugin = shape(1), shape(2)
    monkeypatch.setitem(sys.modules, "plugin_of_this_file", sys.modules[__name__])
    as_plugin.__module__ = "plugin_of_this_file"
    shapes.register("square")(as_script)
    shapes.register("square")(as_plugin)
    assert shapes.load("square") is as_plugin
