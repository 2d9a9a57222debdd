"""Why a plan's actions are there, in a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.envs.pddl.strips import Action, Atom, Problem
from agentrm_jax.envs.pddl.text import sentence

# "I ...", with the action's objects in their order.
_DOINGS = {
    "move": "go to {1}",
    "pick": "pick up {0} with {2}",
    "drop": "drop {0} in {1}",
    "pickup": "pick up {0}",
    "putdown": "put {0} on the table",
    "stack": "put {0} on {1}",
    "unstack": "take {0} off {1}",
    "grasp": "take {1} in the {0} hand",
    "leave": "put {1} down",
    "fill-shot": "fill {0} with {1}",
    "refill-shot": "fill {0} with {1} again",
    "empty-shot": "empty {1}",
    "clean-shot": "clean {0}",
    "pour-shot-to-clean-shaker": "pour {1} into {2}",
    "pour-shot-to-used-shaker": "pour {1} into {2}",
    "empty-shaker": "empty {1}",
    "clean-shaker": "clean {2}",
    "shake": "shake {0}",
    "pour-shaker-to-shot": "pour {0} into {1}",
    "open": "open {0}",
    "close": "close {0}",
    "fetch": "fetch {0}",
    "put-away": "put {0} into {1}",
    "loosen": "loosen {0}",
    "tighten": "tighten {0}",
    "jack-up": "jack up {0}",
    "jack-down": "let {0} down",
    "undo": "undo {0}",
    "do-up": "do up {0}",
    "remove-wheel": "take {0} off {1}",
    "put-on-wheel": "put {0} on {1}",
    "inflate": "inflate {0}",
}


def explained(problem: Problem, plan: Sequence[Action]) -> list[Demonstration]:
    """The plan's actions with thoughts that say which part of the goal each one serves, and how."""
    purposes = _purposes(problem, plan)
    steps = []
    for index, action in enumerate(plan):
        thought = f"I {_doing(action)}"
        following, goal = purposes[index]
        if following is not None:
            thought += f" so that I can {_doing(plan[following])}"
        if goal is not None:
            condition = sentence(goal).strip(" .")
            condition = condition[0].lower() + condition[1:]
            thought = f"The goal says that {condition}. {thought}"
        said = sentence((action.name, *action.arguments)).strip()
        steps.append(Demonstration(thought=f"{thought}.", action=said))
    return steps


def _doing(action: Action) -> str:
    return _DOINGS[action.name].format(*action.arguments)


def _purposes(problem: Problem, plan: Sequence[Action]) -> list[tuple[int | None, Atom | None]]:
    """For each action the first later one that needs it, and the part of the goal this leads to.

    An action is needed by whatever reads an atom that it was the last to make true. One that no
    other needs makes part of the goal true itself.
    """
    makers: dict[Atom, int] = {}  # the last action so far that made the atom true
    needed_by: list[int | None] = [None] * len(plan)
    for index, action in enumerate(plan):
        for atom in sorted(action.precondition):
            maker = makers.get(atom)
            if maker is not None and needed_by[maker] is None:
                needed_by[maker] = index
        makers.update(dict.fromkeys(action.add, index))
    purposes: list[tuple[int | None, Atom | None]] = [(None, None)] * len(plan)
    own = {makers[atom]: atom for atom in reversed(problem.goal) if atom in makers}
    for index in reversed(range(len(plan))):
        following = needed_by[index]
        if index in own:
            purposes[index] = (None, own[index])
        elif following is not None:
            purposes[index] = (following, purposes[following][1])
    return purposes
