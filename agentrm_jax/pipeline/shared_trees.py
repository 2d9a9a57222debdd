"""Search trees that several processes grow: each takes tasks, and records the trees it finishes."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.data.trees import FILE, FailureRecord, IterationRecord, TreeRecord, TreeStore
from agentrm_jax.pipeline.shared_tasks import joined, shared
from agentrm_jax.runtime.lease_files import LeasesEnded
from agentrm_jax.runtime.leases import Lease
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.task_files import SharedTasks
from agentrm_jax.search.explore import Explorer
from agentrm_jax.search.tree_sinks import TreeSink


def explore_shared(
    tasks: Sequence[Task],
    stored: dict[str, TreeRecord],
    explorer: Callable[[TreeSink], Explorer],
    directory: pathlib.Path,
    stage: Stage,
) -> None:
    """Grows trees until every task has a recorded tree, and joins the records.

    Args:
      tasks: All tasks.
      stored: The trees that the joined file holds.
      explorer: Makes a search that gives its trees to a sink.
      directory: The folder of the stage.
      stage: The stage at work.
    """
    keys = [task.task_id for task in tasks]
    done = [n for n, key in enumerate(keys) if key in stored and stored[key].finished]
    leased = stage.group.tasks(FILE, keys, done)
    trees = SharedTrees(leased, tasks, stored)
    with shared(leased, stage), contextlib.closing(trees):
        while leased.wait(stage.check_budget):
            explorer(trees).run(tasks, stored, trees)
    joined(directory / FILE, leased, stage)


class SharedTrees:
    """The trees of the tasks that this process has taken: the source and the sink of its search.

    Args:
      leased: The tasks.
      tasks: The same tasks.
      stored: The trees that the joined file holds. The trees that others began, and that this
        process takes over, are added to it.
    """

    def __init__(
        self, leased: SharedTasks, tasks: Sequence[Task], stored: dict[str, TreeRecord]
    ) -> None:
        self._leased, self._tasks, self._stored = leased, tasks, stored
        self._held: dict[str, tuple[Lease, TreeStore]] = {}

    @property
    def num_waiting(self) -> int:
        return self._leased.num_free

    def take(self, count: int) -> list[Task]:
        """Takes tasks, with the trees that others have left unfinished."""
        taken = []
        for lease in self._leased.take(count):
            task = self._tasks[lease.number]
            path = self._leased.work_path(lease)
            try:
                store = TreeStore(path.parent, path.name, make_folder=False)
            except FileNotFoundError:
                raise LeasesEnded(str(path)) from None
            if tree := self._begun(lease, task):
                store.begin(task, tree.first_observation)
                for iteration in tree.iterations:
                    store.append(iteration)
                self._stored[task.task_id] = tree
            self._held[task.task_id] = lease, store
            taken.append(task)
        return taken

    def begin(self, task: Task, first_observation: str) -> None:
        self._held[task.task_id][1].begin(task, first_observation)

    def append(self, iteration: IterationRecord) -> None:
        self._held[iteration.task_id][1].append(iteration)

    def finish(
        self, task_id: str, error: str | None = None, failures: Sequence[FailureRecord] = ()
    ) -> None:
        """Ends a tree and records it; a tree that another process recorded before stays."""
        lease, store = self._held.pop(task_id)
        store.finish(task_id, error, failures)
        store.close()
        self._leased.record_work(lease)

    def close(self) -> None:
        """Closes the files of trees that are not finished; who takes them over reads them."""
        for _, store in self._held.values():
            store.close()
        self._held.clear()

    def _begun(self, lease: Lease, task: Task) -> TreeRecord | None:
        """The tree with the most iterations that others, or an earlier command, began."""
        found = [self._stored[task.task_id]] if task.task_id in self._stored else []
        for path in self._leased.earlier_work(lease):
            with contextlib.suppress(UserError):  # a host that crashed left it damaged
                found += TreeStore.read(path.parent, path.name).values()
        best = max(
            (tree for tree in found if tree.task == task),
            key=lambda tree: len(tree.iterations),
            default=None,
        )
        # One that was finished but not recorded ends again at once, by its last iteration.
        return best and dataclasses.replace(best, finished=False, error=None, last_failures=())
