"""BabyAI's expert: minigrid's BabyAIBot, its low-level moves turned into the text's actions.

The bot says which of its sub-goals comes next; where that is a thing in view, the macro action for
it is taken and the bot gets each move, so that it plans on from where the macro ends. Where
nothing is in view, or no macro fits, the bot's own next move is taken. What is recorded are actions
of the text environment itself, which has to report success within the task's steps.
"""

from __future__ import annotations

import functools
from typing import Any

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.core.records import Task
from agentrm_jax.envs.babyai.episode import BabyAIEpisode
from agentrm_jax.envs.babyai.paths import DROP, FORWARD, LEFT, PICKUP, RIGHT, TOGGLE, Position
from agentrm_jax.envs.babyai.text import Options, look, options

_MAX_PLANS = 2_000  # sub-goals that the bot may push; it can push and pop the same ones for ever


class _StuckError(Exception):
    """The bot has no plan, or keeps changing it without end."""


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
    """The expert's turns from reset to success, or None if it does not succeed in time."""
    episode = BabyAIEpisode()
    episode.reset(task)
    try:
        return _play(episode, task.max_steps)
    except _StuckError:
        return None


def _replan(bot: Any, made: int | None = None) -> int:
    """The bot's next move after the one just made."""
    try:
        return bot.replan(made)
    # The bot states by assertions what it cannot do, and trips over worlds it did not foresee.
    except (AssertionError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise _StuckError from error


def _play(episode: BabyAIEpisode, max_steps: int) -> list[Demonstration] | None:
    bot = _bot_class()(episode.world)
    bot.stack = _Plans(_without_what_is_carried(bot.stack, episode.world.carrying))
    moves = [_replan(bot)]
    turns: list[Demonstration] = []
    while len(turns) < max_steps:
        found = options(episode.world, look(episode.world))
        turn = _macro_turn(bot, found, episode) or _single_turn(bot, found, moves[-1])
        if turn is None:
            return None
        turns.append(turn)
        transition = episode.act(turn.action, lambda move: moves.append(_replan(bot, move)))
        if transition.done:
            return turns if transition.success else None
    return None


def _without_what_is_carried(plan: list[Any], carried: Any) -> list[Any]:
    """The bot's first plan. Some levels begin with the thing in hand that is to be put somewhere;
    the bot would look for it."""
    if carried is not None and len(plan) >= 2 and _is(plan[-2], "PickupSubgoal"):
        wanted = plan[-1].datum
        if all(
            getattr(wanted, word) in (None, getattr(carried, word)) for word in ("type", "color")
        ):
            return plan[:-2]
    return plan


def _macro_turn(bot: Any, found: Options, episode: BabyAIEpisode) -> Demonstration | None:
    """The macro action for the bot's next sub-goal; None if no macro does it."""
    if not bot.stack:
        return None
    top, below = bot.stack[-1], bot.stack[-2] if len(bot.stack) > 1 else None
    if _is(top, "OpenSubgoal"):
        names = [_about(found, "toggle and go through", _cell(top.fwd_pos))]
    elif (
        not _is(top, "GoNextToSubgoal")
        or top.reason == "PutNext"
        or not (position := _position(bot, top))
    ):
        return None
    elif _is_thing(top.datum):
        verb = {"PickupSubgoal": "pickup", "OpenSubgoal": "toggle and go through"}
        names = [_about(found, verb.get(type(below).__name__, "go to"), position)]
    else:  # a place: through the open doors on the way
        path, _, _ = bot._shortest_path(lambda cell, _: cell == position, try_with_blockers=True)
        names = [_about(found, "go through", cell) for cell in path or ()]
    name = next((name for name in names if name and _works(episode, name, found)), None)
    return Demonstration(thought=_thought(bot, name), action=name) if name else None


def _single_turn(bot: Any, found: Options, move: int) -> Demonstration | None:
    """The bot's own next move; None if the text has no action for it now."""
    world = bot.mission
    single = {LEFT: "turn left", RIGHT: "turn right", FORWARD: "move forward"}
    if move == PICKUP:
        action = _about(found, "pickup", _cell(world.front_pos))
        thought = action and _thought(bot, action)
    elif move == TOGGLE:
        action, thought = "toggle", "The door is in front of me. I open it."
    elif move == DROP and world.carrying is not None:
        action, thought = "drop", f"I put the {world.carrying.color} {world.carrying.type} here."
    else:
        action = single.get(move)
        verb = "look for" if any(goal.is_exploratory() for goal in bot.stack) else "go to"
        thought = f"I {verb} the {_wanted(bot)}. I {action}."
    if action not in found.available or not thought:
        return None
    return Demonstration(thought=thought, action=action)


def _works(episode: BabyAIEpisode, action: str, found: Options) -> bool:
    """Whether a macro does what it says: its path may cross closed doors or unseen things."""
    trial = episode.fork()
    transition = trial.step(action)
    if transition.success or transition.done:
        return transition.success
    target = found.available[action].target
    if action.startswith("pickup"):
        return trial.world.carrying is not None
    reached = trial.world.front_pos if action.startswith("go to") else trial.world.agent_pos
    return target is not None and _cell(reached) == target.position


def _is(subgoal: Any, name: str) -> bool:
    return type(subgoal).__name__ == name


def _is_thing(datum: Any) -> bool:
    """Whether a sub-goal is about an object or the description of one, not about a place."""
    return hasattr(datum, "color")


def _cell(position: Any) -> Position:
    return int(position[0]), int(position[1])


def _position(bot: Any, subgoal: Any) -> Position | None:
    """Returns the target of a go-next-to sub-goal, as far as the bot has seen."""
    datum = subgoal.datum
    if hasattr(datum, "obj_set"):
        _, position = bot._find_obj_pos(datum)
    else:
        position = getattr(datum, "cur_pos", datum)
    return None if position is None else _cell(position)


def _about(found: Options, verb: str, position: Position) -> str | None:
    """The available action `verb ...` that is about the thing at a position."""
    for name, option in found.available.items():
        if option.target and option.target.position == position and name.startswith(verb + " "):
            return name
    return None


def _wanted(bot: Any) -> str:
    """The thing that the topmost sub-goal with a thing is about, in the goal's words."""
    for subgoal in reversed(bot.stack):
        datum = subgoal.datum
        if _is(subgoal, "GoNextToSubgoal") and _is_thing(datum):
            return " ".join(filter(None, (datum.color, datum.type or "object")))
        if _is(subgoal, "OpenSubgoal") and (cell := subgoal.fwd_cell) and cell.type == "door":
            return f"{cell.color} door"
    return "next thing"


def _thought(bot: Any, action: str) -> str:
    """Why an action about a thing is right: it is what is wanted, or it is on the way to it."""
    words = action.split()[-4 if "door" in action else -3 :]
    label, wanted = " ".join(words), _wanted(bot)
    if all(word in (*words, "object") for word in wanted.split()):
        reason = "The goal is" if f" {wanted}" in bot.mission.mission else "I need"
        return f"{reason} the {wanted}. I see {label}."
    if action.startswith("pickup"):
        return f"I take {label} out of the way."
    return f"I look for the {wanted}. I take {label}."
