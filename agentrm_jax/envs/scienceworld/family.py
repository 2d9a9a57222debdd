"""ScienceWorld: school science in a house of ten rooms, played as text (paper, held-in).

The simulator is the library's own, in Java; see `scienceworld.java` for how it is run.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task
from agentrm_jax.envs.replay import ReplayedEpisode
from agentrm_jax.envs.scienceworld import episode as scienceworld_episode
from agentrm_jax.envs.scienceworld import expert as scienceworld_expert
from agentrm_jax.envs.scienceworld import java as scienceworld_java
from agentrm_jax.envs.scienceworld.tasks import (
    KINDS,
    NAME,
    library_tasks,
    paper_count,
    paper_tasks,
    variations,
)
from agentrm_jax.envs.task_lists import check_kinds, in_turn

_INSTRUCTION = """\
You are in a house with a garden and have to do a task of school science there. The places are: \
art studio, bathroom, bedroom, foundry, greenhouse, hallway, kitchen, living room, outside, \
workshop. You can get from any of them to any other in one turn.
All doors are open, and all containers, except in tasks with bees: there you open them yourself. \
Flower pots water themselves.
You can use these actions, one in each turn, with the names of things (OBJ) and places (LOC) that \
you read:
look around: what is here
look at OBJ, look in OBJ: what a thing is like, what it holds
read OBJ
teleport to LOC
open OBJ, close OBJ
pick up OBJ, put down OBJ
move OBJ to OBJ: puts a thing into or onto another
pour OBJ into OBJ: pours out what the first one holds
dunk OBJ into OBJ: dips a container into a liquid
mix OBJ: lets what a container holds react
activate OBJ, deactivate OBJ: turns a device on or off
use OBJ on OBJ: uses a tool, for example a thermometer, on a thing
connect OBJ to OBJ, disconnect OBJ: wires and terminals of electric parts
eat OBJ, flush OBJ
inventory: what you carry
focus on OBJ: shows what you mean by the thing that the task asks for. A wrong one ends the task.
wait: lets ten moments pass
wait1: lets one moment pass
If several things have the name that you say, you are asked which one, and your next action is its \
number.
Reply in this format:
Thought: <what you think>
Action: <one action>"""

# From an episode of `find-non-living-thing`, variation 0, which is one for training.
_EXAMPLE = (
    "Your task is to find a(n) non-living thing. First, focus on the thing. Then, move it to the "
    "red box in the kitchen.",
    "Thought: The red box is in the kitchen. There are things there too, I go and look.\n"
    "Action: teleport to kitchen",
    "You teleport to the kitchen.",
    "Thought: I need to know what is here.\nAction: look around",
    "This room is called the kitchen. In it, you see: \n"
    "\tthe agent\n"
    "\ta substance called air\n"
    "\ta chair. On the chair is: nothing.\n"
    "\ta counter. On the counter is: a bowl (containing a red apple, a banana, an orange, a "
    "potato), a drawer.\n"
    "\ta cupboard. The cupboard door is open. In the cupboard is: a ceramic cup (containing "
    "nothing), a drawer, a metal pot (containing nothing), a tin cup (containing nothing).\n"
    "\ta freezer. The freezer door is open. In the freezer is: nothing.\n"
    "\ta fridge. The fridge door is open. In the fridge is: a wood cup (containing orange "
    "juice).\n"
    "\ta glass jar (containing a substance called sodium chloride)\n"
    "\ta lighter\n"
    "\ta oven, which is turned off. The oven door is open. In the oven is: nothing.\n"
    "\ta painting\n"
    "\ta red box (containing nothing)\n"
    "\ta sink, which is turned off. In the sink is: nothing.\n"
    "\ta substance called soap\n"
    "\ta stopwatch, which is deactivated. \n"
    "\ta stove, which is turned off. On the stove is: nothing.\n"
    "\ta table. On the table is: a glass cup (containing nothing).\n"
    "\ta thermometer, currently reading a temperature of 10 degrees celsius\n"
    "You also see:\n"
    "\tA door to the bathroom (that is open)\n"
    "\tA door to the hallway (that is open)\n"
    "\tA door to the outside (that is open)",
    "Thought: A lighter is not alive, and I can carry it. I say that I mean it.\n"
    "Action: focus on lighter",
    "You focus on the lighter.",
    "Thought: Now it has to go into the red box.\nAction: move lighter to red box",
    "You move the lighter to the red box.",
)


class ScienceWorld:
    """The 30 tasks. Needs Java and scienceworld (`pip install 'agentrm-jax[scienceworld]'`)."""

    name = NAME
    pooled = True
    metric = "reward"

    def missing(self) -> str | None:
        return scienceworld_java.missing()

    def counts(self) -> Mapping[Split, int | None]:
        counts: dict[Split, int | None] = {}
        for split in ("train", "test"):
            counts[split] = sum(len(variations(kind, split)) for kind in KINDS)
        with contextlib.suppress(UserError):
            counts["paper"] = paper_count()
        return counts

    def kinds(self) -> Sequence[str]:
        return tuple(KINDS)

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn; `paper` has none of six of them.

        Raises:
          UserError: For an unknown kind; in `paper`, where a file is missing or broken.
        """
        check_kinds(self.name, self.kinds(), kinds)
        if split == "paper":
            streams = [paper_tasks(kind) for kind in kinds]
        else:
            streams = [library_tasks(kind, split, seed) for kind in kinds]
        return list(itertools.islice(in_turn(streams), n))

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def action_key(self, action: str) -> str:
        return scienceworld_episode.action_key(action)

    def create(self) -> ReplayedEpisode:
        return scienceworld_episode.episode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        return scienceworld_expert.demonstrate(task)
