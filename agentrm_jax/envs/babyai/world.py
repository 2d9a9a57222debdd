"""Minigrid's BabyAI worlds: building one, naming its problem, copying it. No text here.

A world is minigrid's own environment object. Two of its costs are avoided: it never encodes an
image (the text is made from the grid), and a copy shares whatever no action can change.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import os
from collections.abc import Callable
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import canonical_form

World = Any
"""An unwrapped minigrid environment after `reset`; typed loosely as minigrid is optional."""

# AgentBoard's "GoToObjS6-v0" was registered with room size 4 when its labels were made.
_AGENTBOARD_LEVELS = {"GoToObjS6": "BabyAI-GoToObjS4-v0"}


def _import_minigrid() -> None:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        importlib.import_module("minigrid")
    except ImportError as error:
        raise UserError(
            f"the babyai environment needs minigrid ({error}): pip install 'agentrm-jax[babyai]'"
        ) from error


@functools.cache
def _level(kind: str) -> Callable[[], World]:
    """The constructor of a level, taken from gymnasium's registry once."""
    _import_minigrid()
    import gymnasium

    name = _AGENTBOARD_LEVELS.get(kind, f"BabyAI-{kind}-v0")
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise UserError(
            f"the installed minigrid has no level {name}: choose another kind or update minigrid"
        ) from error
    if callable(spec.entry_point):
        constructor = spec.entry_point
    else:
        module, _, attribute = str(spec.entry_point).partition(":")
        constructor = getattr(importlib.import_module(module), attribute)
    return functools.partial(constructor, **spec.kwargs)


def _no_image() -> dict[str, Any]:
    return {}


def _full_reward() -> float:
    return 1.0


def build(kind: str, seed: int) -> World:
    """The level's world for a seed, the same each time.

    Raises:
      UserError: If minigrid is missing or does not know the level.
    """
    # A new object each time: some levels of older minigrids carry state over a reset.
    level = _level(kind)
    with contextlib.redirect_stdout(io.StringIO()):  # minigrid prints each rejected sample
        world = level()
        world.gen_obs = _no_image
        # Minigrid's reward falls with the moves made and can reach 0 for a success.
        world._reward = _full_reward
        world.reset(seed=seed)
    return world


def problem_form(world: World) -> str:
    """The canonical form of a fresh world: mission, whole grid, agent and what it carries."""
    cells = [
        [index, *item.encode(), _encoded(item.contains)]
        for index, item in enumerate(world.grid.grid)
        if item is not None
    ]
    return canonical_form(
        {
            "mission": world.mission,
            "size": [world.width, world.height],
            "cells": cells,
            "agent": [*map(int, world.agent_pos), int(world.agent_dir)],
            "carrying": _encoded(world.carrying),
        }
    )


def _encoded(item: Any) -> list[int] | None:
    return None if item is None else list(item.encode())


def copy_world(world: World) -> World:
    """An independent copy: acting in one is never seen in the other.

    Copied are the objects that an action can move or change, the grid that holds them, what is
    carried, and the instructions (they remember progress and refer to objects and the world).
    Shared is what no action changes: walls, rooms, spaces and the generator, which only `reset`
    uses. The rooms of a copy still list the original's objects: only generation reads them.
    """
    clone = _shallow(world)
    copies: dict[int, Any] = {id(world): clone}
    clone.grid = _shallow(world.grid)
    clone.grid.grid = [
        item if item is None or item.type == "wall" else _copied(item, copies)
        for item in world.grid.grid
    ]
    clone.carrying = _copied(world.carrying, copies)
    clone.instrs = _copied(world.instrs, copies)
    return clone


def _shallow(value: Any) -> Any:
    clone = object.__new__(type(value))
    clone.__dict__.update(value.__dict__)
    return clone


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """A copy of a part of a world, every object in it copied once (`copies`: id -> copy)."""
    if value is None or isinstance(value, str | int | float | tuple):
        return value
    if isinstance(value, list):
        return [_copied(item, copies) for item in value]
    if getattr(value, "type", None) == "wall":
        return value
    known = copies.get(id(value))
    if known is not None:
        return known
    if not hasattr(value, "__dict__"):  # positions as arrays
        return copy.copy(value)
    clone = copies[id(value)] = _shallow(value)
    for name, part in value.__dict__.items():
        if not isinstance(part, str | int | float | tuple | None):
            clone.__dict__[name] = _copied(part, copies)
    return clone
