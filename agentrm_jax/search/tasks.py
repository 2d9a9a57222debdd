"""Checks of the tasks that a caller gives to a search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.core.text import printable
from agentrm_jax.envs.contract import MOST_STEPS


def checked_tasks(tasks: Any) -> list[Task]:
    """Returns the tasks of a search as a list.

    Raises:
      UserError: They are no list of `Task`, a name is no text or empty, `max_steps` is out of
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
    steps = task.max_steps
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= MOST_STEPS:
        raise UserError(
            f"task {printable(task.task_id)}: max_steps must be a whole number from 1 to "
            f"{MOST_STEPS} (got {_short(steps)})"
        )


def _short(value: object) -> str:
    return printable(repr(value))[:60]
