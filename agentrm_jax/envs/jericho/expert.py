"""The walkthrough as an expert: its moves in an agent's words, each with a short thought."""

from __future__ import annotations

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.core.records import Task
from agentrm_jax.envs.jericho.simulator import simulator

_SHORT = {
    "n": "north", "s": "south", "e": "east", "w": "west", "u": "up", "d": "down",
    "ne": "northeast", "nw": "northwest", "se": "southeast", "sw": "southwest",
    "l": "look", "i": "inventory", "z": "wait", "x": "examine",
}  # fmt: skip
_DIRECTIONS = frozenset({
    "north", "south", "east", "west", "up", "down", "northeast", "northwest", "southeast",
    "southwest", "in", "out", "enter", "exit",
})  # fmt: skip
_THOUGHTS = {
    "look": "I look around.",
    "inventory": "I check what I carry.",
    "wait": "I wait and see what happens.",
    "examine": "I look more closely at this: {rest}.",
    "read": "This may tell me something: {rest}.",
    "take": "I may need this: {rest}.",
    "get": "I may need this: {rest}.",
    "drop": "I do not need this now: {rest}.",
    "open": "It is closed, so I open it: {rest}.",
    "search": "Something may be hidden here: {rest}.",
    "unlock": "It is locked, so I unlock it.",
    "give": "I give what is wanted.",
    "ask": "Asking may help.",
    "learn": "I need this spell: {rest}.",
    "wear": "I put this on: {rest}.",
}
_OTHER = "Next I try this: {action}."


def demonstrate(task: Task) -> list[Demonstration]:
    """The walkthrough from the task's start, as far as the steps go."""
    first = task.spec["moves"]
    moves = simulator(task.spec["game"]).walkthrough[first : first + task.max_steps]
    return [_explained(said) for said in moves]


def _explained(said: str) -> Demonstration:
    words = said.lower().split()
    words[0] = _SHORT.get(words[0], words[0])
    action, rest = " ".join(words), " ".join(words[1:])
    if action in _DIRECTIONS:
        return Demonstration(thought=f"I go on: {action}.", action=action)
    thought = _THOUGHTS.get(words[0], _OTHER)
    if "{rest}" in thought and not rest:
        thought = _OTHER
    return Demonstration(thought=thought.format(action=action, rest=rest), action=action)
