"""The tasks of a search: their sources, and checks of tasks that a caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.envs.contract import MOST_STEPS


class TaskSource(Protocol):
    """Gives a search its next tasks.

    Attributes:
      num_waiting: The number of tasks that may be taken now. It may rise while a search runs if
        several processes share the tasks.
    """

    @property
    def num_waiting(self) -> int: ...

    def take(self, count: int) -> list[Task]:
        """Takes the next tasks.

        Args:
          count: Most tasks.

        Returns:
          The tasks; fewer than `count` if others have taken them meanwhile.
        """
        ...


class TaskQueue:
    """A `TaskSource` of a list, in its order."""

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        self._waiting = list(reversed(tasks))

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def take(self, count: int) -> list[Task]:
        return [self._waiting.pop() for _ in range(min(count, len(self._waiting)))]


def checked_tasks(tasks: Any) -> list[Task]:
    """Returns the tasks of a search as a list.

    Raises:
      UserError: They are no list of `Task`, a name is no valid text or empty, `max_steps` is out of
        range, or two tasks have one `task_id`.
    """
    found: dict[str, Task] = {}
    for task in listed(tasks):
        check_task(task)
        if task.task_id in found:
            raise UserError(f"task_id must be unique (got {printable(task.task_id)} twice)")
        found[task.task_id] = task
    return list(found.values())


def listed(tasks: Any) -> list[Any]:
    """Returns tasks as a list; refuses a single task and what holds none."""
    if isinstance(tasks, Task) or not isinstance(tasks, Iterable):
        raise UserError(f"tasks must be a list of Task (got {type(tasks).__name__})")
    return list(tasks)


def check_task(task: Any) -> None:
    """Refuses an object that cannot be the task of a search; see `checked_tasks`."""
    if not isinstance(task, Task):
        raise UserError(f"tasks must be a list of Task (got {type(task).__name__} in it)")
    for name in ("environment", "task_id"):
        if not isinstance(value := getattr(task, name), str) or not value:
            raise UserError(f"tasks: {name} must be a text that is not empty (got {_short(value)})")
        if admit_text(value) != value:  # it would have another name in the store
            raise UserError(
                f"tasks: {name} must be valid Unicode of bounded length (got {_short(value)})"
            )
    steps = task.max_steps
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= MOST_STEPS:
        raise UserError(
            f"task {printable(task.task_id)}: max_steps must be a whole number from 1 to "
            f"{MOST_STEPS} (got {_short(steps)})"
        )


def _short(value: object) -> str:
    return printable(repr(value))[:60]
