"""ALFWorld's experts: the stored walkthrough, the library's hand-coded agent, a planner.

The first that wins within the limit of steps is taken. The hand-coded agent searches as an agent
has to, so its actions show how to explore; the other two know where things are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.core.records import Task
from agentrm_jax.envs.alfworld.game import Game, Simulator
from agentrm_jax.envs.alfworld.plan import plan
from agentrm_jax.envs.alfworld.tasks import TREATMENTS, Goal, goal_of, source_of, walkthrough_of

_PUT = re.compile(r"put (.+) in/on (.+)")
_MOVE = re.compile(r"move (.+) to (.+)")
_OWN_NAME = re.compile(r"\w+_bar_\w+")


def demonstrate(task: Task, simulator: Simulator) -> list[Demonstration] | None:
    """Actions that win, with thoughts; None if no expert wins within the limit of steps."""
    experts: tuple[Callable[[Task, Game], list[str] | None], ...]
    experts = (_walkthrough, _hand_coded, _planned)
    for expert in experts:
        commands = expert(task, simulator.start(source_of(task)))
        if commands and (answers := _won(task, simulator, commands)) is not None:
            return explained(goal_of(task), commands, answers)
    return None


def _won(task: Task, simulator: Simulator, commands: Sequence[str]) -> list[str] | None:
    """The answers to the commands, or None if they do not win."""
    simulator.reset(task)
    answers = []
    for number, command in enumerate(commands, start=1):
        transition = simulator.step(command)
        answers.append(transition.observation)
        if transition.done:
            return answers if transition.success and number == len(commands) else None
    return None


def _walkthrough(task: Task, game: Game) -> list[str] | None:
    """The commands kept in the game file, where objects have their own names."""
    stored = walkthrough_of(task)
    if stored is None:
        return None
    names = {one.lower(): name for one, name in game.names.items()}
    shown = (_OWN_NAME.sub(lambda m: names.get(m[0].lower(), m[0]), one) for one in stored)
    return [_MOVE.sub(r"put \1 in/on \2", one) for one in shown]


def _hand_coded(task: Task, game: Game) -> list[str] | None:
    """ALFWorld's hand-coded agent.

    It takes what it plays from its task's file, which packed games lack, so its policy is made
    directly. It draws from Python's own generator, whose state is put back.
    """
    from alfworld.agents.expert import handcoded_expert, handcoded_expert_tw

    goal = goal_of(task)
    agent = handcoded_expert_tw.HandCodedTWAgent(max_steps=task.max_steps)
    agent.policy = agent.get_task_policy({"task_type": goal.kind})(
        {
            "task_type": goal.kind,
            "object_target": goal.thing.lower(),
            "parent_target": goal.place.lower(),
            "toggle_target": goal.place.lower(),
        },
        max_steps=task.max_steps,
    )
    agent.observe(f"-= Welcome to TextWorld, ALFRED! =-\n\n{game.room}\n\n{game.task}")
    failures = (
        handcoded_expert.HandCodedAgentTimeout,
        handcoded_expert.HandCodedAgentFailed,
        *(KeyError, IndexError, ValueError),  # where its rules of thumb do not fit the room
    )
    state = random.getstate()
    random.seed(f"alfworld/{task.problem}")
    try:
        return _played(agent, game, task.max_steps)
    except failures:
        return None
    finally:
        random.setstate(state)


def _played(agent, game: Game, most: int) -> list[str] | None:
    """The agent's commands until it has won. It speaks of `move` and remembers a `put`."""
    commands: list[str] = []
    command, answer = "look", game.act("look")
    while len(commands) < most:
        state = {
            "feedback": answer,
            "facts": _facts(game),
            "admissible_commands": [_PUT.sub(r"move \1 to \2", one) for one in game.possible()],
            "won": False,
        }
        said = agent.act(state, 0, False, command)
        # As ALFWorld does it: what is not possible becomes a look around.
        command = said if said in state["admissible_commands"] else "look"
        commands.append(_MOVE.sub(r"put \1 in/on \2", command))
        answer = game.act(commands[-1])
        command = commands[-1]
        if game.won:
            return commands
    return None


def _facts(game: Game) -> list[SimpleNamespace]:
    """Returns the facts that the hand-coded agent asks for: places, held things, states."""
    return [
        SimpleNamespace(name=predicate, names=[game.names[one] for one in objects])
        for predicate in ("inreceptacle", "holds", "ishot", "iscool", "isclean")
        for objects in sorted(game.facts.get(predicate, ()))
    ]


def _planned(task: Task, game: Game) -> list[str] | None:
    return plan(goal_of(task), game.facts, game.names)


def explained(goal: Goal, commands: Sequence[str], answers: Sequence[str]) -> list[Demonstration]:
    """The commands with a short thought each, made from the goal and what has been seen so far."""
    thing, place = goal.thing.lower(), goal.place.lower()
    seen: dict[str, str] = {}  # where things of the wanted kind were seen
    carried, here, turns = "", "", []
    for number, (command, answer) in enumerate(zip(commands, answers, strict=True)):
        verb, *rest = command.split(" ", 1)
        about = rest[0].removeprefix("to ") if rest else ""
        if verb == "go":
            thought = _why_go(goal, about, carried, seen, turns)
            here = about
        elif verb == "open":
            thought = f"The {about} is closed. I open it to see what is inside."
            if carried.startswith(f"{thing} ") and about.startswith(f"{place} "):
                thought = f"The {about} is closed. I open it to put the {carried} there."
        elif verb == "close":
            thought = f"I am done with the {about}, so I close it."
        elif verb == "take":
            carried, _, origin = about.partition(" from ")
            seen.pop(carried, None)
            wanted = carried.startswith(f"{thing} ")
            thought = (
                f"There is the {carried}, and I need a {thing}. I take it."
                if wanted
                else f"I take the {carried} from the {origin}."
            )
        elif verb == "put":
            thought = f"I have the {carried} and I am at the {here}. I put it there."
            carried = ""
        elif verb in ("clean", "heat", "cool"):
            carried_thing, _, tool = about.partition(" with ")
            thought = f"The {carried_thing} has to be {_DONE[verb]}. The {tool} can do that."
        elif verb == "use":
            thought = f"I have the {thing} and here is the {about}. I turn it on."
        elif verb == "examine":
            thought = f"I look at the {about} again."
        else:
            thought = "I check where I am and what I have."
        if number == 0:
            thought = f"{_plan_in_words(goal)} {thought}"
        turns.append(Demonstration(thought=thought, action=command))
        for one in re.findall(rf"\b{thing} \d+", answer.partition("you see")[2]):
            seen[one] = here
    return turns


_DONE = {"clean": "cleaned", "heat": "heated", "cool": "cooled"}


def _plan_in_words(goal: Goal) -> str:
    thing, place = goal.thing.lower(), goal.place.lower()
    if goal.kind == "look_at_obj_in_light":
        return f"I need to find a {thing}, take it, and turn on a {place}."
    if goal.kind == "pick_two_obj_and_place":
        return f"I need to find two of {thing} and put them in/on a {place}, one after the other."
    if goal.kind in TREATMENTS:
        verb, _, _, where = TREATMENTS[goal.kind]
        return (
            f"I need to find a {thing}, {verb} it at the {where.lower()}, "
            f"and put it in/on a {place}."
        )
    return f"I need to find a {thing} and put it in/on a {place}."


def _why_go(
    goal: Goal,
    where: str,
    carried: str,
    seen: dict[str, str],
    turns: Sequence[Demonstration],
) -> str:
    thing, place = goal.thing.lower(), goal.place.lower()
    if carried:
        treated = any(turn.action.split(" ", 1)[0] in TREATMENT_VERBS for turn in turns)
        if goal.kind in TREATMENTS and not treated:
            verb, _, _, tool = TREATMENTS[goal.kind]
            if where.startswith(tool.lower()):
                return f"I have the {carried}. To {verb} it I go to the {where}."
        if goal.kind == "look_at_obj_in_light":
            return f"I have the {carried}. Now I look for a {place}. I go to the {where}."
        if where.startswith(f"{place} "):
            return f"I have the {carried}. It belongs in/on a {place}, so I go to the {where}."
        return f"I have the {carried}. I go to the {where}."
    for one, there in seen.items():
        if there == where:
            return f"I saw the {one} at the {where}. I go there."
    return f"I look for a {thing}. It may be at the {where}."


TREATMENT_VERBS = frozenset(verb for verb, *_ in TREATMENTS.values())
