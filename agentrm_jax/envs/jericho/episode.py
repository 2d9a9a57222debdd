"""One episode of a text adventure."""

from __future__ import annotations

import copy
import functools

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.jericho.actions import possible_actions, vocabulary
from agentrm_jax.envs.jericho.labels import next_reached
from agentrm_jax.envs.jericho.simulator import Simulator, State, simulator
from agentrm_jax.envs.jericho.text import (
    REFUSED,
    action_key,
    asks_for_actions,
    clean,
    is_refused,
    opening,
    was_understood,
)

_STRIDE = 10


class JerichoEpisode:
    """One episode.

    The reward is what a step adds to the best progress so far. Progress is the share of the
    task's points that were won since its start or, where the task has AgentBoard's sub-goals,
    the share of those that were reached.
    """

    _simulator: Simulator
    _state: State
    _first_score: int
    _target: int
    _subgoals: tuple[str, ...]
    _waiting: tuple[str, ...]
    _progress: float
    _steps_left: int

    def reset(self, task: Task) -> str:
        spec = task.spec
        self._simulator = simulator(spec["game"])
        self._state = start(spec["game"], spec["moves"])
        self._first_score = self._state.score
        self._target = spec["target"]
        self._subgoals = self._waiting = tuple(spec["subgoals"])
        self._progress = 0.0
        self._steps_left = task.max_steps
        text = spec["opening"] or situation(self._simulator, self._state, spec["moves"])
        return f"Goal: {spec['goal']}\n{text}"

    def step(self, action: str) -> Transition:
        self._steps_left -= 1
        if asks_for_actions(action):
            names = [*possible_actions(self._simulator, self._state), "check valid actions"]
            return self._answer("You can take the following actions: " + ", ".join(names))
        said = action_key(action)
        if is_refused(said, *vocabulary(self._simulator)):
            return self._answer(REFUSED, valid=False)
        self._state = self._simulator.play(self._state, said)
        text = clean(self._state.text)
        before, self._progress = self._progress, max(self._progress, self._reached(text))
        return self._answer(
            text, reward=self._progress - before, valid=was_understood(self._state.text)
        )

    def fork(self) -> JerichoEpisode:
        return copy.copy(self)  # nothing that it holds is ever changed

    def _reached(self, text: str) -> float:
        if not self._subgoals:
            gained = self._state.score - self._first_score
            return min(1.0, max(0.0, gained / (self._target - self._first_score)))
        reached = next_reached(self._waiting, text)
        if reached is not None:
            where = self._waiting.index(reached)
            self._waiting = self._waiting[:where] + self._waiting[where + 1 :]
        return 1 - len(self._waiting) / len(self._subgoals)

    def _answer(self, text: str, *, reward: float = 0.0, valid: bool = True) -> Transition:
        # A game may be won with a point left out; with sub-goals only they count.
        success = self._progress >= 1 or (self._state.won and not self._subgoals)
        return Transition(
            observation=text,
            reward=reward,
            done=success or self._state.over or self._steps_left <= 0,
            success=success,
            valid=valid,
        )


@functools.lru_cache(maxsize=512)
def start(game: str, moves: int) -> State:
    """The game after the first moves of its walkthrough."""
    player = simulator(game)
    if moves == 0:
        return player.start
    done = (moves - 1) // _STRIDE * _STRIDE  # so that few states are kept and few moves repeated
    state = start(game, done)
    for said in player.walkthrough[done:moves]:
        state = player.play(state, said)
    return state


def situation(player: Simulator, state: State, moves: int) -> str:
    """Returns an agent's first text: the game's opening or, later in the game, where it is and what
    it carries. Asking for that takes none of the game's time."""
    if moves == 0:
        return opening(state.text)
    return " ".join(clean(player.play(state, said).text) for said in ("look", "inventory"))
