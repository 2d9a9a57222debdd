"""BabyAI's expert: minigrid's BabyAIBot, its low-level moves turned into the text's actions.

The bot says which of its sub-goals comes next; where that is a thing in view, the macro action for
it is taken and the bot is told each move, so that it plans on from where the macro ends. Where
nothing is in view, or no macro fits, the bot's own next move is taken. What is recorded are actions
of the text environment itself, which has to report success within the task's steps.
"""

from __future__ import annotations

import functools
from typing import Any

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.core.records import Task
from agentrm_jax.envs.babyai import BabyAIEpisode
from agentrm_jax.envs.babyai_text import (
    DROP,
    FORWARD,
    LEFT,
    PICKUP,
    RIGHT,
    TOGGLE,
    Options,
    look,
    options,
)
from agentrm_jax.envs.babyai_world import World

_MAX_PLANS = 2_000  # sub-goals that the bot may push; it can push and pop the same ones for ever


class _StuckError(Exception):
    """The bot keeps changing its plan without end."""


class _Plans(list):
    """The bot's stack of sub-goals, which counts what is pushed: a time-out without a clock."""

    def __init__(self, items: list[Any]):
        super().__init__(items)
        self._left = _MAX_PLANS

    def append(self, item: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise _StuckError
        super().append(item)


@functools.cache
def _bot_class() -> type:
    from minigrid.utils.baby_ai_bot import BabyAIBot

    return BabyAIBot


def demonstrate(task: Task) -> list[Demonstration] | None:
    """The expert's turns from reset to success, or None where it does not succeed in time."""
    episode = BabyAIEpisode()
    episode.reset(task)
    try:
        return _play(episode, task.max_steps)
    # The bot states what it cannot do by assertions, and trips over worlds it did not foresee.
    except (_StuckError, AssertionError, AttributeError, TypeError, ValueError, IndexError):
        return None


def _play(episode: BabyAIEpisode, max_steps: int) -> list[Demonstration] | None:
    world = episode.world
    bot = _bot_class()(world)
    bot.stack = _Plans(bot.stack)
    move = bot.replan()
    turns: list[Demonstration] = []
    macros = True
    while len(turns) < max_steps:
        found = options(world, look(world))
        turn = (_macro_turn(bot, found) if macros else None) or _single_turn(bot, found, move)
        if turn is None:
            return None
        turns.append(turn)
        before = _pose(world)
        suggested = [move]

        def follow(made: int, suggested: list[int] = suggested) -> None:
            suggested[0] = bot.replan(made)

        transition = episode.act(turn.action, follow)
        if transition.success:
            return turns
        if transition.done or (not macros and _pose(world) == before):
            return None
        move = suggested[0]
        macros = _pose(world) != before
    return None


def _pose(world: World) -> tuple[Any, ...]:
    """What tells whether a turn changed anything."""
    x, y = world.agent_pos
    ahead = world.grid.get(*world.front_pos)
    return int(x), int(y), world.agent_dir, world.carrying, ahead and ahead.encode()


def _macro_turn(bot: Any, found: Options) -> Demonstration | None:
    """The macro action for the bot's next sub-goal; None where no macro does it."""
    if not bot.stack:
        return None
    top, below = bot.stack[-1], bot.stack[-2] if len(bot.stack) > 1 else None
    wanted = _wanted(bot)
    if _is(top, "OpenSubgoal"):
        action = _action(found, "toggle and go through", tuple(map(int, top.fwd_pos)))
        return action and _door_turn(action, wanted)
    if not _is(top, "GoNextToSubgoal") or top.reason == "PutNext":
        return None
    position = _position(bot, top)
    if position is None or isinstance(top.datum, tuple) or top.reason == "Explore":
        return _passing_turn(bot, found, position, wanted)
    verbs = {"PickupSubgoal": "pickup", "OpenSubgoal": "toggle and go through"}
    verb = verbs.get(type(below).__name__, "go to")
    action = _action(found, verb, position)
    if action is None:
        return None
    if verb == "toggle and go through":
        return _door_turn(action, wanted)
    return Demonstration(thought=_seen_thought(bot, action, wanted), action=action)


def _is(subgoal: Any, name: str) -> bool:
    return type(subgoal).__name__ == name


def _position(bot: Any, subgoal: Any) -> tuple[int, int] | None:
    """Where a go-next-to sub-goal leads, as far as the bot has seen."""
    datum = subgoal.datum
    if hasattr(datum, "obj_set"):
        _, position = bot._find_obj_pos(datum, subgoal.reason == "PutNext")
    else:
        position = getattr(datum, "cur_pos", datum)
    return None if position is None else (int(position[0]), int(position[1]))


def _action(found: Options, verb: str, position: tuple[int, int] | None) -> str | None:
    """The available action `verb ...` that is about the thing at a position."""
    for name, option in found.available.items():
        if option.target and option.target.position == position and name.startswith(verb + " "):
            return name
    return None


def _passing_turn(
    bot: Any, found: Options, position: tuple[int, int] | None, wanted: str
) -> Demonstration | None:
    """On the way to a place out of view: through the first open door on the way, if any."""
    if position is None:
        return None
    path, _, _ = bot._shortest_path(lambda cell, _: cell == position, try_with_blockers=True)
    for cell in path or ():
        action = _action(found, "go through", cell)
        if action is not None:
            return _door_turn(action, wanted)
    return None


def _single_turn(bot: Any, found: Options, move: int) -> Demonstration | None:
    """The bot's own next move."""
    ahead = tuple(map(int, bot.mission.front_pos))
    wanted = _wanted(bot)
    if move == PICKUP:
        action = _action(found, "pickup", ahead)
        if action is None:
            return None
        return Demonstration(thought=_seen_thought(bot, action, wanted), action=action)
    if move == TOGGLE:
        return Demonstration(thought="The door is in front of me. I open it.", action="toggle")
    if move == DROP:
        held = bot.mission.carrying
        thing = f"{held.color} {held.type}" if held else "thing"
        return Demonstration(thought=f"I put the {thing} down here.", action="drop")
    names = {LEFT: "turn left", RIGHT: "turn right", FORWARD: "move forward"}
    if move not in names:
        return None
    thought = f"I look for the {wanted}." if _exploring(bot) else f"I go to the {wanted}."
    return Demonstration(thought=f"{thought} I {names[move]}.", action=names[move])


def _exploring(bot: Any) -> bool:
    return any(subgoal.is_exploratory() for subgoal in bot.stack)


def _wanted(bot: Any) -> str:
    """The thing that the topmost sub-goal with a thing is about, in the goal's words."""
    for subgoal in reversed(bot.stack):
        datum = subgoal.datum
        if _is(subgoal, "GoNextToSubgoal") and hasattr(datum, "color"):
            return " ".join(filter(None, (datum.color, datum.type or "object")))
    return "goal"


def _seen_thought(bot: Any, action: str, wanted: str) -> str:
    label = " ".join(action.split()[-3:] if "door" not in action else action.split()[-4:])
    if f" {wanted}" in f" {bot.mission.mission}":
        return f"The goal is the {wanted}. I see {label}."
    return f"I need the {wanted}. I see {label}."


def _door_turn(action: str, wanted: str) -> Demonstration:
    label = " ".join(action.split()[-4:])
    return Demonstration(thought=f"I want the {wanted}. I see {label}.", action=action)
