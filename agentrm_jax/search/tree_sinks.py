"""Receivers of the trees of an exploration: a `TreeStore` on disk, or memory."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import FailureRecord, IterationRecord, TreeRecord, TreeStore
from agentrm_jax.runtime.json_files import same_settings, write_json_atomic

SETTINGS = "search.json"
"""The settings of the trees that `explore(store=...)` keeps in a folder."""


class TreeSink(Protocol):
    """Receives trees while they grow; `data.trees.TreeStore` keeps them on disk."""

    def begin(self, task: Task, first_observation: str) -> None:
        """Begins the tree of a task."""
        ...

    def append(self, iteration: IterationRecord) -> None:
        """Adds a finished iteration to the tree of its task."""
        ...

    def finish(
        self, task_id: str, error: str | None = None, failures: Sequence[FailureRecord] = ()
    ) -> None:
        """Ends the tree of a task.

        Args:
          task_id: The task.
          error: The reason if it ends early.
          failures: Candidates that failed after the last iteration.
        """
        ...


class TreesInMemory:
    """A `TreeSink` that keeps trees in memory; `trees` holds them by task id."""

    def __init__(self) -> None:
        self.trees: dict[str, TreeRecord] = {}

    def begin(self, task: Task, first_observation: str) -> None:
        self.trees[task.task_id] = TreeRecord(task=task, first_observation=first_observation)

    def append(self, iteration: IterationRecord) -> None:
        record = self.trees[iteration.task_id]
        self.trees[iteration.task_id] = dataclasses.replace(
            record, iterations=(*record.iterations, iteration)
        )

    def finish(
        self, task_id: str, error: str | None = None, failures: Sequence[FailureRecord] = ()
    ) -> None:
        self.trees[task_id] = dataclasses.replace(
            self.trees[task_id], finished=True, error=error, last_failures=tuple(failures)
        )


def grown_trees(
    store: str | pathlib.Path | None,
    tasks: Sequence[Task],
    settings: Mapping[str, Any],
    grow: Callable[[TreeSink, Mapping[str, TreeRecord]], None],
) -> list[TreeRecord]:
    """Returns the trees of an exploration, in the order of the tasks.

    Args:
      store: Folder that keeps the trees, or None for memory.
      tasks: The tasks.
      settings: Arguments that decide what the trees are. They are kept next to the trees and
        compared when these are resumed. A folder without them, as a run's, is resumed as it is.
      grow: Explores, given a receiver of trees and the trees that are stored already.

    Raises:
      UserError: A stored tree is damaged, or the folder holds trees of other settings or another
        task of the same id.
    """
    if store is None:
        memory = TreesInMemory()
        grow(memory, {})
        trees: Mapping[str, TreeRecord] = memory.trees
    else:
        directory = pathlib.Path(store)
        stored = TreeStore.read(directory)
        for task in tasks:
            if task.task_id in stored and stored[task.task_id].task != task:
                raise UserError(
                    f"{directory}: holds the tree of another task with the id "
                    f"{printable(task.task_id)}; choose another folder"
                )
        path = directory / SETTINGS
        if not same_settings(path, settings, "trees") and not stored:
            write_json_atomic(path, settings)
        with contextlib.closing(TreeStore(directory)) as sink:
            grow(sink, stored)
        trees = TreeStore.read(directory)
    return [trees[task.task_id] for task in tasks]
