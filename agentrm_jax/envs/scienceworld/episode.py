"""Episodes: the game's score becomes rewards, its many worlds become forks."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.replay import ReplayedEpisode, Simulators
from agentrm_jax.envs.scienceworld.java import Java, World, java
from agentrm_jax.envs.scienceworld.tasks import simplifications

# Worlds that are alive in one Java process. The more there are, the fewer forks and side-by-side
# episodes have to be played again; each takes about a MB of Java's memory.
_WORLDS = 128

_NOTHING_SAID = (
    "Unknown action.  Type 'help' for a list of actions, and 'objects' for a list of possible "
    "object referents. "
)
# How an answer begins that says that nothing was done. The game itself does not tell.
_NOT_DONE = (
    "No known action matches",
    "Ambiguous request",
    "Unknown action",
    "ERROR",
    "<",
    "I'm not sure",
    "It's not clear",
    "Its not clear",
    "You can't",
    "You must",
    "Something can't",
    "That can't",
    "That is already",
    "That object",
    "The door doesn't",
    "The liquids in",
)
_NOT_DONE_ENDS = (
    "is not openable.",
    "is not closeable.",
    "is not moveable.",
    "is not movable.",
    "is not edible.",
    "is not a container.",
    "is not open.",
    "is not something that can be activated.",
    "is already open.",
    "is already closed.",
    "is already activated.",
    "is already deactivated.",
    "so there's nothing to pour.",
    "because it's not open.",
    "appear to be in a container.",
    "so you can't see inside.",
    "does not contain any liquids to dunk into.",
)


_BLANKS = re.compile(r"[ \t\n\x0b\f\r]+")  # Java's \s
_ENDS = "".join(map(chr, range(33)))  # what Java's trim takes away


def episode() -> ReplayedEpisode:
    return ReplayedEpisode(simulators())


@functools.cache
def simulators() -> Simulators:
    """Returns the simulators of this process.

    The game does the same each time (see `scienceworld.patch`), so a replayed answer
    must be the same letter by letter, reward and end.
    """
    return Simulators(ScienceWorldSimulator, most=_WORLDS)


class ScienceWorldSimulator:
    """One world and the score in it.

    The outcome is the best score so far, as a share of 100: a step pays what it adds to that. A
    wrong `focus on` ends the episode with the score -100, which takes nothing away again.
    """

    _java: Java
    _world: World
    _best: int
    _steps_left: int

    def reset(self, task: Task) -> str:
        kind, variation = task.spec["task"], task.spec["variation"]
        self._java = java()
        self._world = self._java.load(kind, variation, simplifications(kind))
        # What the library's reset does; it takes no time in the game.
        self._java.step(self._world, "look around")
        self._best, self._steps_left = 0, task.max_steps
        return self._java.description(self._world)

    def step(self, action: str) -> Transition:
        self._steps_left -= 1
        # The library answers these itself.
        action = action_key(action)
        match action:
            case "help":
                return self._told("Possible actions: ", self._java.possible_actions(self._world))
            case "objects":
                objects = self._java.possible_objects(self._world)
                return self._told("Possible object references: ", objects)
            case "task":
                description = self._java.description(self._world)
                return self._told(f"Task description:\n{description}")
        said, score, over = self._java.step(self._world, _encodable(action))
        points = round(100 * score)
        best = max(self._best, points)
        reward, self._best = best / 100 - self._best / 100, best
        return Transition(
            observation=said or _NOTHING_SAID,
            reward=reward,
            done=over or points < 0 or self._steps_left <= 0,
            success=points >= 100,
            valid=was_done(said),
        )

    def _told(self, what: str, names: Sequence[str] = ()) -> Transition:
        return Transition(
            observation="\n\t".join([what, *names]),
            reward=0.0,
            done=self._steps_left <= 0,
            success=False,
        )


def action_key(action: str) -> str:
    """Returns an action as the game's own parser reads it: lower case, ASCII blanks folded."""
    return _encodable(_BLANKS.sub(" ", action.strip(_ENDS)).lower())


def was_done(said: str) -> bool:
    """Whether an answer reports something done or seen, not why it was not done."""
    said = said.strip()
    return bool(said) and not said.startswith(_NOT_DONE) and not said.endswith(_NOT_DONE_ENDS)


def _encodable(action: str) -> str:
    """Without halves of characters, which cannot be sent."""
    return action.encode("utf-8", "replace").decode("utf-8")
