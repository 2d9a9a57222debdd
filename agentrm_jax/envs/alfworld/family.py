"""ALFWorld's household tasks on TextWorld (paper, held-in)."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task
from agentrm_jax.envs.alfworld.files import missing_games
from agentrm_jax.envs.alfworld.game import Simulator, as_command
from agentrm_jax.envs.alfworld.tasks import (
    KINDS,
    NAME,
    new_tasks,
    source_of,
    stored_count,
    stored_tasks,
)
from agentrm_jax.envs.alfworld.wordings import WORDINGS
from agentrm_jax.envs.replay import ReplayedEpisode, Simulators
from agentrm_jax.envs.task_lists import check_kinds, in_turn

_SIMULATORS = 8  # of a process; each holds a copy of the planner library

_INSTRUCTION = """\
You are in a house and have to do a household task. You see what is on or in the place where you \
are. You can carry one thing at a time. Some places have to be opened before you see what is inside.
You can use these actions, one in each turn:
go to {place}
open {place}
close {place}
take {thing} from {place}
put {thing} in/on {place}
clean {thing} with {place}
heat {thing} with {place}
cool {thing} with {place}
use {thing}
examine {thing or place}
look
inventory
Things and places are named with their number, for example: go to cabinet 2
An action that is not possible is answered by "Nothing happens."
Reply in this format:
Thought: <what you think>
Action: <one action>"""

_EXAMPLE = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a "
    "countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n"
    "Your task is to: put a clean mug in cabinet.",
    "Thought: I need to find a mug, clean it at the sinkbasin, and put it in/on a cabinet. "
    "I look for a mug. It may be at the countertop 1.\n"
    "Action: go to countertop 1",
    "You arrive at countertop 1. On the countertop 1, you see a bread 1, a mug 1, and a spoon 1.",
    "Thought: There is the mug 1, and I need a mug. I take it.\n"
    "Action: take mug 1 from countertop 1",
    "You pick up the mug 1 from the countertop 1.",
    "Thought: I have the mug 1. To clean it I go to the sinkbasin 1.\nAction: go to sinkbasin 1",
    "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.",
    "Thought: The mug 1 has to be cleaned. The sinkbasin 1 can do that.\n"
    "Action: clean mug 1 with sinkbasin 1",
    "You clean the mug 1 using the sinkbasin 1.",
    "Thought: I have the mug 1. It belongs in/on a cabinet, so I go to the cabinet 1.\n"
    "Action: go to cabinet 1",
    "You arrive at cabinet 1. The cabinet 1 is closed.",
    "Thought: The cabinet 1 is closed. I open it to put the mug 1 there.\nAction: open cabinet 1",
    "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing.",
    "Thought: I have the mug 1 and I am at the cabinet 1. I put it there.\n"
    "Action: put mug 1 in/on cabinet 1",
    "You put the mug 1 in/on the cabinet 1.",
)


class Alfworld:
    """ALFWorld's games (`pip install 'agentrm-jax[alfworld]'`, and the games themselves).

    Attributes:
      wordings: The paper's five wordings, by name: see `envs.perturbations`.
    """

    name = NAME
    pooled = True
    metric = "success rate"
    wordings = WORDINGS

    def missing(self) -> str | None:
        for package in ("alfworld", "textworld", "fast_downward"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: pip install 'agentrm-jax[alfworld]'"
        return missing_games()

    def counts(self) -> Mapping[Split, int | None]:
        self._check()
        return {"train": None, "test": stored_count("test"), "paper": stored_count("paper")}

    def kinds(self) -> Sequence[str]:
        return KINDS

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn. `train`: of each kind first the games as they are,
        then other goals in their rooms.

        Raises:
          UserError: For an unknown kind, or where packages or games are missing.
        """
        check_kinds(self.name, KINDS, kinds)
        self._check()
        streams = stored_tasks(split, kinds, seed)
        if split == "train":
            more = [new_tasks(kind, seed) for kind in kinds]
            streams = [itertools.chain(*pair) for pair in zip(streams, more, strict=True)]
        found, problems = [], set()
        for task in itertools.islice(in_turn(streams), None):
            if len(found) == n:
                break
            # Some games differ in the wording of their task only.
            if split == "paper" or task.problem not in problems:
                problems.add(task.problem)
                found.append(task)
        return found

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def action_key(self, action: str) -> str:
        return as_command(action)

    def create(self) -> ReplayedEpisode:
        self._check()
        return ReplayedEpisode(_simulators())

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """The first of three experts that wins: see `envs.alfworld.expert`."""
        self._check()
        from agentrm_jax.envs.alfworld.expert import demonstrate

        return demonstrate(task, _expert_simulator())

    def _check(self) -> None:
        if reason := self.missing():
            raise UserError(reason)


@functools.cache
def _simulators() -> Simulators:
    return Simulators(lambda: Simulator(source_of), _SIMULATORS)


@functools.cache
def _expert_simulator() -> Simulator:
    return Simulator(source_of)
