"""An episode with tools: a world that answers calls, and a score of what was reached."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.tools.calls import Call, Tool, ToolError, error_text, read_call
from agentrm_jax.envs.tools.http import NotRecordedError, ServiceError

# What AgentBoard tells before the first step.
FINISH_HINT = (
    "Once you have finished the goal, please remember to take 'finish' action to end this goal."
)

NOTHING = object()
"""What an answer counts for that is no part of any goal."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A tool's answer.

    Attributes:
      value: What is shown (by `str`).
      valid: Whether the tool did what it was asked for.
      reached: What counts towards the goal, where it is one of the goal's parts.
    """

    value: Any
    valid: bool = True
    reached: Any = NOTHING


class World(Protocol):
    """The data that tools work on. It is never changed: a call returns the world after it."""

    @property
    def tools(self) -> Sequence[Tool]: ...

    def call(self, call: Call) -> tuple[Result, World]:
        """Performs a call to one of the tools.

        Raises:
          ToolError: It cannot; the message is the answer.
          KeyError, OverflowError, ...: An argument is missing or unusable; whatever it is, it is
            answered as AgentBoard does.
        """
        ...


class Score(Protocol):
    """The reached part of the goal. It is never changed either."""

    @property
    def progress(self) -> float: ...

    @property
    def success(self) -> bool:
        """Whether the task is solved, if the last call was the end."""
        ...

    def after(self, result: Result, world: World, finished: bool) -> Score:
        """The score after a valid call."""
        ...


class ToolEpisode:
    """One episode (`core.protocols.Environment`).

    The reward is what a step adds to the score's progress. `finish` ends the episode.

    Args:
      set_up: World and score of a task, and a text that stands below the goal.
    """

    _world: World
    _score: Score
    _steps_left: int

    def __init__(self, set_up: Callable[[Task], tuple[World, Score, str]]) -> None:
        self._set_up = set_up

    def reset(self, task: Task) -> str:
        self._world, self._score, text = self._set_up(task)
        self._steps_left = task.max_steps
        tools = "\n".join(f"- {tool}" for tool in self._world.tools)
        return f"Goal: {task.spec['goal'].strip()}\nTools:\n{tools}\n{text}"

    def step(self, action: str) -> Transition:
        self._steps_left -= 1
        finished, before = False, self._score.progress
        try:
            call = read_call(action)
            result, world = self._world.call(call)
            text, valid, score = str(result.value), result.valid, self._score
            finished = call.name == "finish"
            if valid:
                score = score.after(result, world, finished)
            self._world, self._score = world, score
        except (UserError, NotRecordedError, ServiceError):
            raise  # the user can mend it, or nobody knows the answer
        except ToolError as error:
            text, valid, finished = str(error), False, False
        except Exception as error:  # as AgentBoard answers whatever a tool raises
            text, valid, finished = error_text(error), False, False
        return Transition(
            observation=text,
            reward=self._score.progress - before,
            done=finished or self._steps_left <= 0,
            success=finished and self._score.success,
            valid=valid,
        )

    def fork(self) -> ToolEpisode:
        return copy.copy(self)  # nothing that it holds is ever changed
