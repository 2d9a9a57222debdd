"""Observations and actions of BabyAI: AgentBoard's text over a minigrid world.

The semantics are AgentBoard's, in code of our own: the same sentences, the same action names and
the same low-level moves, its oddities included, because its labels and published scores depend on
them. Pure functions of a world (see `babyai.world`); `docs/guides/environments/babyai.md`
lists every difference.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from agentrm_jax.envs.babyai.paths import (
    DIRECTIONS,
    DROP,
    FORWARD,
    LEFT,
    PICKUP,
    RIGHT,
    TOGGLE,
    Paths,
    Position,
)
from agentrm_jax.envs.babyai.world import World

CHECK = "check available actions"
UNKNOWN_ACTION = "The action is not recognized. Please check valid actions."

_DESCRIBED = frozenset({"door", "key", "ball", "box", "goal", "lava", "wall"})
_SOLID = frozenset({"wall", "box", "lava", "ball", "key"})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A thing in view, the agent's own cell apart.

    Attributes:
      name: For example `grey key` or `red closed door`.
      type: Minigrid's word for it.
      position: Absolute column and row.
      front, right: Steps from the agent, in the direction it faces and to its right.
    """

    name: str
    type: str
    position: Position
    front: int
    right: int

    @property
    def distance(self) -> int:
        return abs(self.front) + abs(self.right)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The view of the agent.

    Attributes:
      things: Nearest first, walls included; ties in the order of the view, far left first.
      code: Changes exactly when the image of minigrid's observation changes.
    """

    things: tuple[Seen, ...]
    code: tuple[Any, ...]

    @property
    def barrier(self) -> Seen | None:
        """The nearest wall or box straight ahead."""
        ahead = (t for t in self.things if t.right == 0 and t.type in ("wall", "box"))
        return min(ahead, key=lambda thing: thing.front, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An available action: its low-level moves and the thing that it is about."""

    moves: tuple[int, ...]
    target: Seen | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The available actions by name, in the order shown, and why some others are not."""

    available: dict[str, Option]
    refused: dict[str, str]


class _Outside:
    """Stands for the cells beyond the grid, which minigrid shows as grey walls."""

    type, color = "wall", "grey"

    def see_behind(self) -> bool:
        return False

    def encode(self) -> tuple[int, int, int]:
        return (2, 5, 0)


_OUTSIDE = _Outside()


def look(world: World) -> View:
    """Minigrid's partial view with its rule of visibility, as a list of things."""
    size = world.agent_view_size
    half = size // 2
    column, row = map(int, world.agent_pos)
    dx, dy = DIRECTIONS[world.agent_dir]
    view: list[list[Any]] = []  # farthest row first, leftmost column first
    for front in range(size - 1, -1, -1):
        places = (
            (column + dx * front - dy * right, row + dy * front + dx * right)
            for right in range(-half, half + 1)
        )
        view.append([_cell(world, x, y) for x, y in places])
    visible = _visible(view)
    view[-1][half] = world.carrying  # minigrid shows what is held where the agent stands
    things, code = [], []
    for j, i in itertools.product(range(size), range(size)):
        item = view[j][i] if visible[j][i] else "unseen"
        code.append(item if item is None or item == "unseen" else item.encode())
        front, right = size - 1 - j, i - half
        if item is None or item == "unseen" or front == right == 0:
            continue
        position = column + dx * front - dy * right, row + dy * front + dx * right
        # AgentBoard leaves out what lies beyond the grid's left and upper edge.
        if item.type in _DESCRIBED and min(position) >= 0:
            thing = Seen(
                name=_name(item), type=item.type, position=position, front=front, right=right
            )
            things.append(thing)
    things.sort(key=lambda thing: thing.distance)
    return View(things=tuple(things), code=tuple(code))


def _cell(world: World, x: int, y: int) -> Any:
    if 0 <= x < world.width and 0 <= y < world.height:
        return world.grid.grid[y * world.width + x]
    return _OUTSIDE


def _visible(view: list[list[Any]]) -> list[list[bool]]:
    """Light spreads from the agent, row by row away from it, sideways first; walls stop it."""
    size = len(view)
    mask = [[False] * size for _ in range(size)]
    mask[size - 1][size // 2] = True
    for j in range(size - 1, -1, -1):
        for columns, step in ((range(size - 1), 1), (range(size - 1, 0, -1), -1)):
            for i in columns:
                item = view[j][i]
                if not mask[j][i] or (item is not None and not item.see_behind()):
                    continue
                mask[j][i + step] = True
                if j > 0:
                    mask[j - 1][i + step] = True
                    mask[j - 1][i] = True
    return mask


def _name(item: Any) -> str:
    if item.type != "door":
        return f"{item.color} {item.type}"
    state = "open" if item.is_open else "locked" if item.is_locked else "closed"
    return f"{item.color} {state} door"


def describe(world: World, view: View) -> str:
    """The observation's text."""
    text = "You cannot see any objects within sight."
    if view.things:
        text = "In front of you in this room, you can see several objects: "
        text += "".join(
            f"There is a {thing.name} {number} {_where(thing)}.  "
            for thing, number in _numbered(view)
        )
    text += "The room has walls around you. "
    if (barrier := view.barrier) is not None:
        text += f"You are facing a {barrier.type} {barrier.front} steps away. "
    held = world.carrying
    return text + (
        "You are not carrying anything."
        if held is None
        else f"You are carrying a {held.color} {held.type}."
    )


def _numbered(view: View) -> Iterator[tuple[Seen, int]]:
    counts: Counter[str] = Counter()
    for thing in view.things:
        if thing.type != "wall":
            counts[thing.name] += 1
            yield thing, counts[thing.name]


def _where(thing: Seen) -> str:
    if thing.right == 0:
        return f"right in front of you {thing.front} steps away"
    side = "right" if thing.right > 0 else "left"
    return f"{thing.front} steps in front of you and {abs(thing.right)} steps to your {side}"


def options(world: World, view: View) -> Options:
    """The actions that can be said now."""
    found = Options(available={}, refused={})
    x, y = map(int, world.agent_pos)
    blocked = (thing.position for thing in view.things if thing.type in _SOLID)
    paths = Paths((x, y, world.agent_dir), world.agent_view_size, blocked)
    found.available["turn left"] = Option(moves=(LEFT,))
    found.available["turn right"] = Option(moves=(RIGHT,))
    barrier = view.barrier
    if barrier is None or barrier.front > 1:
        found.available["move forward"] = Option(moves=(FORWARD,))
    else:
        found.refused["move forward"] = (
            "There is a barrier in front of you, you can't move forward."
        )
    if world.carrying is None:
        _add_reachable(
            found, "pickup", (PICKUP,), _of_type(view, "key", "ball", "box", "lava"), paths
        )
    _add_drop(found, world, view)
    for door, number in _numbered(view):
        if door.type == "door":
            _add_door(found, world, door, f"{door.name} {number}", paths)
    for goal in _of_type(view, "goal"):
        path = paths.onto(goal.position)
        if path is None:
            found.refused["go to goal"] = (
                "You cannot go to the goal, as there is no path leading to it."
            )
        else:
            found.available["go to goal"] = Option(moves=path, target=goal)
    things = _of_type(view, "door", "key", "ball", "box", "lava")
    _add_reachable(found, "go to", (), things, paths)
    found.available[CHECK] = Option(moves=())
    return found


def _of_type(view: View, *types: str) -> list[Seen]:
    return [thing for thing in view.things if thing.type in types]


def _add_reachable(
    found: Options, verb: str, last: tuple[int, ...], things: list[Seen], paths: Paths
) -> None:
    """Adds `verb name number`. Unlike in the observation only reachable things are counted."""
    counts: Counter[str] = Counter()
    for thing in things:
        path = paths.facing(thing.position)
        label = f"{thing.name} {counts[thing.name] + 1}"
        if path is None:
            found.refused[f"{verb} {label}"] = (
                f"You cannot {verb} {label}, as there is no path leading to it."
            )
        else:
            counts[thing.name] += 1
            found.available[f"{verb} {label}"] = Option(moves=path + last, target=thing)


def _add_drop(found: Options, world: World, view: View) -> None:
    if world.carrying is None:
        found.refused["drop"] = "You cannot drop the object, as you are not carrying anything."
    elif any(t.front == 1 and t.right == 0 and t.type in _SOLID for t in view.things):
        found.refused["drop"] = (
            "You cannot drop the object, as there is already an object in front of you."
        )
    else:
        found.available["drop"] = Option(moves=(DROP,))


def _add_door(found: Options, world: World, door: Seen, label: str, paths: Paths) -> None:
    color, state, _ = door.name.split()
    through, toggle = f"go through {label}", f"toggle and go through {label}"
    if state == "open":
        path = paths.onto(door.position)
        if path is None:
            found.refused[through] = f"You cannot {through}, as there is no path leading to it."
        else:
            found.available[through] = Option(moves=path, target=door)
        return
    if state == "closed":
        found.refused[through] = (
            f"You cannot {through}, as it is closed. You should toggle it first."
        )
    elif world.carrying is None or world.carrying.type != "key":
        found.refused[toggle] = f"You cannot {toggle}, as you are not carrying a key."
        return
    elif world.carrying.color != color:
        found.refused[toggle] = (
            f"You cannot {toggle}, as the color of the key you are carrying does not match the "
            "color of door."
        )
        return
    path = paths.facing(door.position)
    if path is None:
        found.refused[toggle] = f"You cannot {toggle}, as there is no path leading to it."
        return
    found.available[toggle] = Option(moves=(*path, TOGGLE, FORWARD), target=door)
    if not path:
        found.available["toggle"] = Option(moves=(TOGGLE,), target=door)
