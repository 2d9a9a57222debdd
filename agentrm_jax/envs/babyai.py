"""BabyAI on minigrid, read and acted on as text (paper, held-out environments)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, Transition, is_test_problem
from agentrm_jax.envs.babyai_text import UNKNOWN_ACTION, describe, look, options
from agentrm_jax.envs.babyai_world import World, build, copy_world, problem_form

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
_MAX_STEPS = 20
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

    def kinds(self) -> Sequence[str]:
        """The level names without prefix and version, AgentBoard's 28 first."""
        return (*_PAPER_KINDS.split(), *_OTHER_KINDS.split())

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn.

        Raises:
          UserError: For an unknown kind, or where minigrid is missing.
        """
        for kind in kinds:
            if kind not in self.kinds():
                raise UserError(
                    f"babyai has no kind {kind!r}: choose from {', '.join(self.kinds())}"
                )
        if split == "paper":
            streams = [_paper_tasks(kind) for kind in kinds if kind in _PAPER_KINDS.split()]
        else:
            seen = set(_paper_problems())
            streams = [_generated_tasks(kind, split, seed, seen) for kind in kinds]
        return list(itertools.islice(_in_turn(streams), n))

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def create(self) -> BabyAIEpisode:
        return BabyAIEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        from agentrm_jax.envs.babyai_expert import demonstrate

        return demonstrate(task)


def _in_turn(streams: Sequence[Iterator[Task]]) -> Iterator[Task]:
    """One task of each stream, then the next of each, until all streams end."""
    rounds = itertools.zip_longest(*streams)
    return (task for tasks in rounds for task in tasks if task is not None)


def _paper_tasks(kind: str) -> Iterator[Task]:
    for seed in _PAPER_SEEDS:
        yield _task(kind, seed, "paper", problem_form(build(kind, seed)))


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
        problem = problem_form(build(kind, level_seed))
        if problem in seen or is_test_problem(problem) != (split == "test"):
            without_news += 1
            if without_news == _DRAWS_WITHOUT_NEWS:
                return
            continue
        without_news = 0
        seen.add(problem)
        yield _task(kind, level_seed, split, problem)


def _task(kind: str, seed: int, split: Split, problem: str) -> Task:
    return Task(
        environment=BabyAI.name,
        task_id=f"{BabyAI.name}/{kind}/{seed}",
        kind=kind,
        split=split,
        problem=problem,
        max_steps=_PAPER_MAX_STEPS if split == "paper" else _MAX_STEPS,
        spec={"level": kind, "seed": seed},
    )


class BabyAIEpisode:
    """One episode: a minigrid world, acted on by the text's macro actions.

    The reward is 1 for the step that reaches the goal, else 0. (AgentBoard's progress rate would
    be computed in `_transition`, from the sub-goals of its label file; minigrid has none.)
    """

    def __init__(self) -> None:
        self._world: World = None
        self._steps_left = 0

    @property
    def world(self) -> World:
        """Minigrid's environment, for the expert to read."""
        return self._world

    def reset(self, task: Task) -> str:
        self._world = build(task.spec["level"], task.spec["seed"])
        self._steps_left = task.max_steps
        self._view = look(self._world)
        return f"Goal: {self._world.mission}\n{describe(self._world, self._view)}"

    def step(self, action: str) -> Transition:
        return self.act(action, lambda move: None)

    def act(self, action: str, on_move: Callable[[int], None]) -> Transition:
        """`step`, with a call after each low-level move but the one that reaches the goal."""
        self._steps_left -= 1
        action = _normalised(action)
        if action == "":
            return self._transition("No change in state.", valid=False)
        found = options(self._world, self._view)
        if "check" in action:
            return self._transition(
                "You can take the following actions: " + ", ".join(found.available)
            )
        option = found.available.get(action)
        if option is None:
            return self._transition(found.refused.get(action, UNKNOWN_ACTION), valid=False)
        if not option.moves:
            return self._transition("No change in state.")
        success = self._move(option.moves, on_move)
        text = describe(self._world, self._view)
        if success:
            text += "\nThe task is completed."
        return self._transition(text, success=success)

    def _move(self, moves: Sequence[int], on_move: Callable[[int], None]) -> bool:
        """Moves until the goal is reached (True) or a move changes nothing in view (False).

        What minigrid's strict levels call a failure ends nothing, as in AgentBoard: they fail
        every mission of two doors as soon as its first door is opened.
        """
        for move in moves:
            before = self._view.code
            _, reward, _, _, _ = self._world.step(move)
            self._view = look(self._world)
            if reward > 0:
                return True
            on_move(move)
            if self._view.code == before:
                break
        return False

    def _transition(self, text: str, *, valid: bool = True, success: bool = False) -> Transition:
        return Transition(
            observation=text,
            reward=1.0 if success else 0.0,
            done=success or self._steps_left <= 0,
            success=success,
            valid=valid,
        )

    def fork(self) -> BabyAIEpisode:
        copy = BabyAIEpisode()
        copy._world = copy_world(self._world)
        copy._view = self._view
        copy._steps_left = self._steps_left
        return copy


def _normalised(action: str) -> str:
    action = " ".join(action.lower().split())
    return "pickup " + action.removeprefix("pick up ") if action.startswith("pick up ") else action
