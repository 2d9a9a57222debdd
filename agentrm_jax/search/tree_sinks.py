"""Receivers of the trees of an exploration: a `TreeStore` on disk, or memory."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.data.trees import FailureRecord, IterationRecord, TreeRecord, TreeStore
from agentrm_jax.runtime.json_files import read_record, write_json_atomic

SETTINGS = "search.json"
"""The file with the settings of the trees next to it."""


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
    settings: Mapping[str, Any],
    grow: Callable[[TreeSink, Mapping[str, TreeRecord]], None],
) -> Mapping[str, TreeRecord]:
    """Returns the trees of an exploration by task id.

    Args:
      store: Folder that keeps the trees, or None for memory.
      settings: Arguments that decide what the trees are. They are kept in the folder.
      grow: Explores, given a receiver of trees and the trees that are stored already.

    Raises:
      UserError: A stored tree is damaged, or the folder holds trees of other settings.
    """
    if store is None:
        memory = TreesInMemory()
        grow(memory, {})
        return memory.trees
    directory = pathlib.Path(store)
    _claim(directory, settings)
    stored = TreeStore.read(directory)
    with contextlib.closing(TreeStore(directory)) as sink:
        grow(sink, stored)
    return TreeStore.read(directory)


def _claim(directory: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new folder; compares those of one that holds trees.

    A folder without the file, as a run's `trees/`, is not compared.
    """
    path = directory / SETTINGS
    if path.exists():
        before = read_record(path)
        for name, value in settings.items():
            if before.get(name, value) != value:
                raise UserError(
                    f"{directory}: holds trees with {name} = {before[name]} (got {value}); choose "
                    "another store, or set it back"
                )
    elif not directory.exists() or not any(directory.iterdir()):
        write_json_atomic(path, dict(settings))
