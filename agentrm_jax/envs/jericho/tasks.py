"""Jericho's tasks: AgentBoard's, and stretches of the games' walkthroughs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections.abc import Iterator

from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.envs.jericho.games import GOALS
from agentrm_jax.envs.jericho.labels import has_labels, read_label
from agentrm_jax.envs.jericho.simulator import Simulator, State, simulator

NAME = "jericho"
_MAX_STEPS = 20
_PAPER_MAX_STEPS = 30  # AgentBoard's own setting
_MOST_MOVES = 15  # of a walkthrough's stretch
_MOST_GAINS = 3  # times that the score rises in it


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """Moves `first` to `last` of a walkthrough, after which the score is `target` at last.

    Attributes:
      world: Where all things are before the first move.
    """

    first: int
    last: int
    score: int
    target: int
    world: str


def paper_task(game: str) -> Task:
    """AgentBoard's task: the game from its beginning."""
    player = simulator(game)
    spec = {"game": game, "moves": 0, "target": player.max_score, "goal": GOALS[game]}
    spec |= {"subgoals": [], "opening": ""}
    if has_labels():
        label = read_label(game)
        spec |= {"goal": label.goal, "subgoals": list(label.subgoals), "opening": label.opening}
    return Task(
        environment=NAME,
        task_id=f"{NAME}/{game}/paper",
        kind=game,
        split="paper",
        problem=canonical_form([game, "from the beginning"]),
        max_steps=_PAPER_MAX_STEPS,
        spec=spec,
    )


def stretch_tasks(game: str, split: Split, seed: int) -> Iterator[Task]:
    """A task for each stretch of the walkthrough, in an order drawn from the seed."""
    found = list(stretches(game))
    random.Random(f"{NAME}/{game}/{seed}").shuffle(found)
    return (_stretch_task(game, split, one) for one in found)


def _stretch_task(game: str, split: Split, one: Stretch) -> Task:
    goal = f"{GOALS[game]} You are in the middle of it: your score is {one.score} points."
    return Task(
        environment=NAME,
        task_id=f"{NAME}/{game}/{one.first}-{one.target}",
        kind=game,
        split=split,
        problem=canonical_form([game, one.world, one.score, one.target]),
        max_steps=_MAX_STEPS,
        spec={
            "game": game,
            "moves": one.first,
            "target": one.target,
            "goal": f"{goal} Raise it to {one.target}.",
            "subgoals": [],
            "opening": "",
        },
    )


@functools.cache
def stretches(game: str) -> tuple[Stretch, ...]:
    """Stretches with different beginnings or targets that an agent can play as they are.

    They begin after the first move, so none is the beginning that AgentBoard's task has.
    """
    player = simulator(game)
    states = _played(player)
    best = [states[0].score]
    for state in states[1:]:
        best.append(max(best[-1], state.score))
    found: dict[tuple[str, int, int], Stretch] = {}
    for first in range(1, len(states) - 1):
        state = states[first]
        # A task is to gain points, not to get back what was lost.
        if state.score < best[first] or state.over or not _can_begin(player, state):
            continue
        world = hashlib.sha256(player.world(state)).hexdigest()[:16]
        gains = [i for i in range(first + 1, len(states)) if best[i] > best[i - 1]]
        for last in gains[:_MOST_GAINS]:
            moves = player.walkthrough[first:last]
            if len(moves) > _MOST_MOVES or any("," in said or "." in said for said in moves):
                break  # an agent's command ends at such a sign
            one = Stretch(first, last, state.score, best[last], world)
            found.setdefault((world, one.score, one.target), one)
    return tuple(found.values())


def _played(player: Simulator) -> list[State]:
    states = [player.start]
    for said in player.walkthrough:
        states.append(player.play(states[-1], said))
        if states[-1].over:
            break
    return states


def _can_begin(player: Simulator, state: State) -> bool:
    """Whether the place can be looked at: not where the game asks a question, and not where it
    has nothing but a name."""
    return len(player.play(state, "look").text.strip().splitlines()) > 1
