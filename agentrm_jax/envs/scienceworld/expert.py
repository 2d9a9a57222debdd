"""The library's own solutions, checked and made a little shorter."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Sequence

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.core.records import Task
from agentrm_jax.envs.scienceworld.episode import ScienceWorldSimulator
from agentrm_jax.envs.scienceworld.java import java
from agentrm_jax.envs.scienceworld.tasks import simplifications

_WALK = re.compile(r"(open door|go) to ")
_NUMBERED = re.compile(r"(.+) \d+")
_AMBIGUOUS = "Ambiguous request: Please enter the number"
_UNKNOWN = "No known action matches"
_THOUGHTS = (
    (r"look around", "I look at what is here."),
    (r"(?:look at|look in|examine) (.+)", "I have a closer look at {0}."),
    (r"(?:teleport|go) to (.+)", "I go on to the {0}."),
    (r"open (.+)", "I open {0}."),
    (r"close (.+)", "I close {0}."),
    (r"pick up (.+)", "I take {0} with me."),
    (r"focus on (.+)", "The task asks for this: I focus on {0}."),
    (r"move (.+) to (.+)", "{0} has to be in {1}."),
    (r"(?:pour|dunk) (.+?) in(?:to)? (.+)", "What is in {0} has to get into {1}."),
    (r"mix (.+)", "I mix what is in {0}."),
    (r"activate (.+)", "I need {0}: I turn it on."),
    (r"deactivate (.+)", "I am done with {0}: I turn it off."),
    (r"use (.+) on (.+)", "I use {0} on {1}."),
    (r"connect (.+) to (.+)", "I connect {0} with {1}."),
    (r"read (.+)", "I read what {0} says."),
    (r"wait\d*", "This takes time: I wait."),
    (r"\d+", "The game asks which one I mean: number {0}."),
)


def demonstrate(task: Task) -> list[Demonstration] | None:
    """The library's solution, where it leads to the score 100 within `max_steps`; else None.

    The library finds it by playing, and its agent draws from the same random numbers as the game.
    So animals can be elsewhere when it is played again, and it can fail. Then the solution for
    the house with its containers shut is tried, in which no bees are about.
    """
    kind, variation = task.spec["task"], task.spec["variation"]
    opened = simplifications(kind)
    for chosen in dict.fromkeys((opened, opened.removesuffix(",openContainers"))):
        path = java().gold_path(kind, variation, chosen)
        for actions in (shortened(path), path):
            if played := _played(task, actions):
                return [Demonstration(thought=thought(action), action=action) for action in played]
    return None


def shortened(path: Sequence[str]) -> list[str]:
    """The path with each walk through doors and rooms made a teleport to its last room, and a look
    around (it takes no time in the game) where the agent is for the first time."""
    found: list[str] = []
    seen: set[str] = set()
    for walking, steps in itertools.groupby(path, key=lambda action: bool(_WALK.match(action))):
        actions = list(steps)
        moves = [number for number, action in enumerate(actions) if action.startswith("go to ")]
        if walking and moves:
            room = actions[moves[-1]].removeprefix("go to ")
            looked = [] if room in seen else ["look around"]
            seen.add(room)
            actions = [f"teleport to {room}", *looked, *actions[moves[-1] + 1 :]]
        elif found[-1:] == actions[:1] == ["look around"]:
            del actions[0]
        found += actions
    return found


def _played(task: Task, actions: Iterable[str]) -> list[str] | None:
    """The actions up to success, or None.

    A question which of several things is meant is answered by the first. What the game does not
    understand changes nothing and is left out; the library's agent numbers things that have one
    name (`pick up bee 0`), which is then tried without the number.
    """
    simulator = ScienceWorldSimulator()
    simulator.reset(dataclasses.replace(task, max_steps=sys.maxsize))
    done: list[str] = []
    waiting = list(actions)[::-1]
    while waiting and len(done) < task.max_steps:
        action = waiting.pop()
        transition = simulator.step(action)
        if transition.observation.startswith(_UNKNOWN):
            if numbered := _NUMBERED.fullmatch(action):
                waiting.append(numbered[1])
            continue
        done.append(action)
        if transition.done:
            return done if transition.success else None
        asked = transition.observation.startswith(_AMBIGUOUS)
        if asked and not (waiting and waiting[-1].isdecimal()):
            waiting.append("0")
    return None


def thought(action: str) -> str:
    """A short reason by the kind of action."""
    for pattern, words in _THOUGHTS:
        if match := re.fullmatch(pattern, action):
            named = match.groups() or (action,)
            text = words.format(*named)
            return text[0].upper() + text[1:]
    return f"Next I {action}."
