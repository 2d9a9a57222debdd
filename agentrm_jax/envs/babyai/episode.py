"""One episode of BabyAI: a minigrid world, read and acted on as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.babyai.text import UNKNOWN_ACTION, describe, look, options
from agentrm_jax.envs.babyai.world import World, build, copy_world


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
        action = action_key(action)
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
            if self._low_level(move):
                return True
            on_move(move)
            if self._view.code == before:
                break
        return False

    def _low_level(self, move: int) -> bool:
        """Makes one move of minigrid; returns whether it reached the goal."""
        _, reward, _, _, _ = self._world.step(move)
        self._view = look(self._world)
        return reward > 0

    def _transition(
        self, text: str, *, valid: bool = True, success: bool = False, done: bool = False
    ) -> Transition:
        return Transition(
            observation=text,
            reward=1.0 if success else 0.0,
            done=done or success or self._steps_left <= 0,
            success=success,
            valid=valid,
        )

    def fork(self) -> BabyAIEpisode:
        copy = BabyAIEpisode()
        self._copy_to(copy)
        return copy

    def _copy_to(self, other: BabyAIEpisode) -> None:
        other._world = copy_world(self._world)
        other._view = self._view
        other._steps_left = self._steps_left


def action_key(action: str) -> str:
    """Returns an action as the episode reads it: case, blanks, `pickup` for `pick up`."""
    action = " ".join(action.lower().split())
    return "pickup " + action.removeprefix("pick up ") if action.startswith("pick up ") else action
