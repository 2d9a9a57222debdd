"""BabyAI on minigrid, read and acted on as text (paper, held-out environments)."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, is_test_problem
from agentrm_jax.envs.babyai.episode import BabyAIEpisode, action_key
from agentrm_jax.envs.babyai.silent import DONE, SilentBabyAIEpisode
from agentrm_jax.envs.babyai.wordings import WORDINGS
from agentrm_jax.envs.babyai.world import World, build, problem_form
from agentrm_jax.envs.perturbations import SEPARATOR, SILENT, renamed
from agentrm_jax.envs.task_lists import check_kinds, in_turn

# The 28 levels of AgentBoard's test list, in its order; each is played with four seeds.
_PAPER_KINDS = """
GoToRedBallGrey GoToRedBall GoToRedBallNoDists GoToObjS6 GoToLocalS8N7 GoToObjMazeS7
GoToImpUnlock GoToSeqS5R2 GoToRedBlueBall GoToDoor GoToObjDoor Open OpenRedDoor OpenDoorLoc
OpenRedBlueDoorsDebug OpenDoorsOrderN4Debug Pickup UnblockPickup PickupLoc PickupDistDebug
PickupAbove Unlock UnlockLocalDist UnlockPickupDist BlockedUnlockPickup UnlockToUnlock FindObjS7
KeyCorridorS6R3
"""
_PAPER_SEEDS = range(1234, 1238)
_OTHER_KINDS = """
GoToObj GoToObjS4 GoToLocal GoToLocalS5N2 GoToLocalS6N2 GoToLocalS6N3 GoToLocalS6N4
GoToLocalS7N4 GoToLocalS7N5 GoToLocalS8N2 GoToLocalS8N3 GoToLocalS8N4 GoToLocalS8N5
GoToLocalS8N6 GoTo GoToOpen GoToObjMaze GoToObjMazeOpen GoToObjMazeS4R2 GoToObjMazeS4
GoToObjMazeS5 GoToObjMazeS6 GoToSeq OpenDoor OpenDoorDebug OpenDoorColor OpenTwoDoors
OpenRedBlueDoors OpenDoorsOrderN2 OpenDoorsOrderN4 OpenDoorsOrderN2Debug PickupDist PutNextLocal
PutNextLocalS5N3 PutNextLocalS6N4 PutNextS4N1 PutNextS5N2 PutNextS5N1 PutNextS6N3 PutNextS7N4
PutNextS5N2Carrying PutNextS6N3Carrying PutNextS7N4Carrying UnlockLocal KeyInBox UnlockPickup
ActionObjDoor FindObjS5 FindObjS6 KeyCorridor KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3
KeyCorridorS4R3 KeyCorridorS5R3 OneRoomS8 OneRoomS12 OneRoomS16 OneRoomS20 MoveTwoAcrossS5N2
MoveTwoAcrossS8N9 Synth SynthS5R2 SynthLoc SynthSeq MiniBossLevel BossLevel BossLevelNoUnlock
"""
_LEAST_MAX_STEPS, _MOST_MAX_STEPS = 20, 128
_PAPER_MAX_STEPS = 30  # AgentBoard's own setting
_FIRST_SEED = 1_000_000
_SEEDS_PER_STREAM = 1_000_000
_DRAWS_WITHOUT_NEWS = 500  # then a level is held to have no more problems

_INSTRUCTION = """\
You are in a world of rooms and have to reach the given goal. You see only what is in front of you.
You can use these actions, one in each turn:
turn left
turn right
move forward
go to <object> <number>
pickup <object> <number>
drop
go through <door> <number>: the door must be open.
toggle and go through <door> <number>: the door is closed, or it is locked and you carry the key \
of its colour.
toggle: opens the closed door right in front of you.
go to goal
check available actions
Objects are named with the number that the observation gives them, for example: go to grey key 2
Reply in this format:
Thought: <what you think>
Action: <one action>"""

_EXAMPLE = (
    "Goal: pick up the blue key\n"
    "In front of you in this room, you can see several objects: There is a red ball 1 2 steps in "
    "front of you and 1 steps to your right.  The room has walls around you. You are facing a wall "
    "4 steps away. You are not carrying anything.",
    "Thought: I look for the blue key. I turn left.\nAction: turn left",
    "In front of you in this room, you can see several objects: There is a blue key 1 3 steps in "
    "front of you and 2 steps to your left.  The room has walls around you. You are facing a wall "
    "5 steps away. You are not carrying anything.",
    "Thought: The goal is the blue key. I see blue key 1.\nAction: pickup blue key 1",
)


class BabyAI:
    """The levels of BabyAI. Needs minigrid (`pip install 'agentrm-jax[babyai]'`)."""

    name = "babyai"
    pooled = True
    metric = "success rate"
    wordings = WORDINGS
    end_reveals_outcome = True  # "The task is completed."

    def missing(self) -> str | None:
        if importlib.util.find_spec("minigrid") is None:
            return "minigrid is not installed: pip install 'agentrm-jax[babyai]'"
        return None

    def counts(self) -> Mapping[Split, int | None]:
        paper = len(_PAPER_KINDS.split()) * len(_PAPER_SEEDS)
        return {"train": None, "test": None, "paper": paper}

    def kinds(self) -> Sequence[str]:
        """The level names without prefix and version, AgentBoard's 28 first."""
        return (*_PAPER_KINDS.split(), *_OTHER_KINDS.split())

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn.

        Raises:
          UserError: For an unknown kind, or where minigrid is missing.
        """
        check_kinds(self.name, self.kinds(), kinds)
        if split == "paper":
            streams = [_paper_tasks(kind) for kind in kinds if kind in _PAPER_KINDS.split()]
        else:
            seen = set(_paper_problems())
            streams = [_generated_tasks(kind, split, seed, seen) for kind in kinds]
        return list(itertools.islice(in_turn(streams), n))

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def action_key(self, action: str) -> str:
        return action_key(action)

    def silent(self) -> BabyAI:
        """Returns the form in which the agent ends episodes and nothing tells the outcome."""
        return SilentBabyAI()

    def create(self) -> BabyAIEpisode:
        return BabyAIEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        from agentrm_jax.envs.babyai.expert import demonstrate  # loads minigrid's bot

        return demonstrate(task)


class SilentBabyAI(BabyAI):
    """The levels of BabyAI, each ended by the agent."""

    name = f"{BabyAI.name}{SEPARATOR}{SILENT}"
    end_reveals_outcome = False

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        tasks = super().tasks(split, kinds=kinds, n=n, seed=seed)
        return [renamed(task, BabyAI.name, self.name) for task in tasks]

    def prompt(self) -> Prompt:
        """Returns BabyAI's prompt with the action `done`."""
        told = super().prompt()
        last = "check available actions\n"
        instruction = told.instruction.replace(
            last, f"{last}{DONE}: ends the episode. Say it when the goal is reached; nothing else "
            "tells you.\n",
        )  # fmt: skip
        return dataclasses.replace(told, instruction=instruction)

    def create(self) -> SilentBabyAIEpisode:
        return SilentBabyAIEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """Returns the turns of BabyAI's expert and `done`, or None if they do not succeed."""
        own = renamed(task, self.name, BabyAI.name)
        turns = super().demonstrate(dataclasses.replace(own, max_steps=max(1, task.max_steps - 1)))
        if turns is None or len(turns) >= task.max_steps:
            return None
        turns = [*turns, Demonstration(thought="The goal is reached.", action=DONE)]
        episode = self.create()
        episode.reset(task)
        return turns if [episode.step(turn.action) for turn in turns][-1].success else None


def _paper_tasks(kind: str) -> Iterator[Task]:
    for seed in _PAPER_SEEDS:
        problem = problem_form(build(kind, seed))
        yield _task(kind, seed, "paper", problem, _PAPER_MAX_STEPS)


@functools.cache
def _paper_problems() -> frozenset[str]:
    return frozenset(
        problem_form(build(kind, seed)) for kind in _PAPER_KINDS.split() for seed in _PAPER_SEEDS
    )


def _generated_tasks(kind: str, split: Split, seed: int, seen: set[str]) -> Iterator[Task]:
    """Tasks of new problems that belong to the split; their problems are added to `seen`."""
    first = _FIRST_SEED + seed * _SEEDS_PER_STREAM
    without_news = 0
    for level_seed in range(first, first + _SEEDS_PER_STREAM):
        problem, max_steps = _listed_level(kind, level_seed)
        if problem in seen or is_test_problem(problem) != (split == "test"):
            without_news += 1
            if without_news == _DRAWS_WITHOUT_NEWS:
                return
            continue
        without_news = 0
        seen.add(problem)
        yield _task(kind, level_seed, split, problem, max_steps)


@functools.lru_cache(maxsize=100_000)
def _listed_level(kind: str, seed: int) -> tuple[str, int]:
    """The problem and the step limit of a level; each stage of a run lists the same levels."""
    world = build(kind, seed)
    return problem_form(world), _max_steps(world)


def _max_steps(world: World) -> int:
    """A quarter of the moves that minigrid allows: actions of the text make several, and a maze of
    nine rooms needs more than one room."""
    return min(_MOST_MAX_STEPS, max(_LEAST_MAX_STEPS, world.max_steps // 4))


def _task(kind: str, seed: int, split: Split, problem: str, max_steps: int) -> Task:
    return Task(
        environment=BabyAI.name,
        task_id=f"{BabyAI.name}/{kind}/{seed}",
        kind=kind,
        split=split,
        problem=problem,
        max_steps=max_steps,
        spec={"level": kind, "seed": seed},
    )
