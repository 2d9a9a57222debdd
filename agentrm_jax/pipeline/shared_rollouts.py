"""Rollouts that one or several processes run and store, within the budget of the run."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.evaluation.rollout_files import (
    read_rollouts,
    rollout_to_json,
    run_missing,
    stored_rollouts,
)
from agentrm_jax.pipeline.shared_tasks import join_leftovers, joined, list_of, shared
from agentrm_jax.runtime.json_lines import JsonLines
from agentrm_jax.runtime.lease_files import LeasesEnded
from agentrm_jax.runtime.leases import Lease
from agentrm_jax.runtime.progress import Progress
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.task_files import SharedTasks
from agentrm_jax.search.rollouts import Rollout

Run = Callable[[Sequence[tuple[Task, int]]], Iterator[Rollout]]
"""Runs episodes, (task, sample number), and yields their rollouts as they end."""

_BATCHES = 4
"""Most episodes that a process takes at a time, as a multiple of those that it runs at once."""


def shared_rollouts(
    name: str,
    path: pathlib.Path,
    episodes: Sequence[tuple[Task, int]],
    run: Run,
    stage: Stage,
    *,
    folder: pathlib.Path,
    concurrency: int,
) -> list[Rollout]:
    """Runs the episodes that a file lacks, with a progress bar. All processes call it together.

    Args:
      name: Name of the progress bar.
      path: The file of all processes.
      episodes: (task, sample number) of all rollouts that are wanted.
      run: Runs episodes.
      stage: The stage at work.
      folder: The folder of the stage.
      concurrency: Number of episodes that `run` runs at the same time.

    Returns:
      The rollouts of `episodes`, in their order.

    Raises:
      BudgetSpent: The budget is spent; what has ended is stored.
    """
    join_leftovers(path, folder, stage)
    with stage.progress(name, len(episodes)) as bar:
        if stage.group.shared:
            by_task: dict[str, list[tuple[Task, int]]] = {}
            for task, sample in episodes:
                by_task.setdefault(task.task_id, []).append((task, sample))
            _run_shared(list_of(path, folder), path, by_task, run, stage, bar, concurrency)
            return stored_rollouts(path, episodes, lambda missing: iter(()))

        def within_budget(missing: Sequence[tuple[Task, int]]) -> Iterator[Rollout]:
            for left, rollout in zip(reversed(range(len(missing))), run(missing), strict=False):
                yield rollout
                if left:  # the rollout is stored by now
                    stage.check_budget()

        return stored_rollouts(path, episodes, within_budget, bar.advance)


def _run_shared(
    name: str,
    path: pathlib.Path,
    by_task: Mapping[str, Sequence[tuple[Task, int]]],
    run: Run,
    stage: Stage,
    bar: Progress,
    concurrency: int,
) -> None:
    """Runs episodes until those of all tasks are recorded, and joins them."""
    stored: dict[str, dict[int, Rollout]] = {}
    for rollout in read_rollouts(path):
        of_task = stored.setdefault(rollout.trajectory.task.task_id, {})
        of_task[rollout.sample] = rollout
    keys = list(by_task)
    done = [
        n for n, key in enumerate(keys)
        if stored.get(key, {}).keys() >= {sample for _, sample in by_task[key]}
    ]  # fmt: skip
    leased = stage.group.tasks(name, keys, done)
    together = -(-concurrency // max(1, max(map(len, by_task.values()), default=1)))
    with shared(leased, stage):
        while leased.wait(stage.check_budget):
            # Large batches while much is left, small ones at the end: no process waits for long.
            count = min(_BATCHES * together, leased.share // 2)
            leases = leased.take(max(together, count))
            if leases:
                _Batch(leased, leases, by_task, stored).run(path, run, stage, bar)
    joined(path, leased, stage)


class _Batch:
    """Tasks that this process has taken, with a file for the rollouts of each.

    Args:
      leased: The tasks of all processes.
      leases: Those of this batch.
      by_task: The episodes of each task.
      stored: Rollouts of an earlier command, by task and sample number.
    """

    def __init__(
        self,
        leased: SharedTasks,
        leases: Sequence[Lease],
        by_task: Mapping[str, Sequence[tuple[Task, int]]],
        stored: Mapping[str, Mapping[int, Rollout]],
    ) -> None:
        self._leased, self._by_task = leased, by_task
        self._leases = {lease.key: lease for lease in leases}
        self._files: dict[str, JsonLines] = {}
        self._found = {
            key: {**stored.get(key, {}), **self._earlier(lease)}
            for key, lease in self._leases.items()
        }

    def run(self, path: pathlib.Path, run: Run, stage: Stage, bar: Progress) -> None:
        """Runs what the batch lacks, and records each task when it is complete."""
        try:
            for key in self._leases:
                self._begin(key)
                self._record_if_complete(key)
            missing = [
                (task, sample)
                for key in self._leases
                for task, sample in self._by_task[key]
                if sample not in self._found[key]
            ]
            for number, rollout in enumerate(run_missing(path, missing, run), start=1):
                key = rollout.trajectory.task.task_id
                self._files[key].append(rollout_to_json(rollout))
                self._found[key][rollout.sample] = rollout
                self._record_if_complete(key)
                bar.advance()
                if number < len(missing):
                    stage.check_budget()
        finally:
            for file in self._files.values():
                file.close()

    def _begin(self, key: str) -> None:
        try:
            path = self._leased.work_path(self._leases[key])
            self._files[key] = JsonLines(path, make_folder=False)
        except FileNotFoundError:
            raise LeasesEnded(key) from None
        for rollout in self._found[key].values():
            self._files[key].append(rollout_to_json(rollout))

    def _record_if_complete(self, key: str) -> None:
        if self._found[key].keys() >= {sample for _, sample in self._by_task[key]}:
            self._files[key].sync()
            self._files.pop(key).close()
            self._leased.record_work(self._leases[key])

    def _earlier(self, lease: Lease) -> dict[int, Rollout]:
        """The rollouts of workers that had the task before."""
        found: dict[int, Rollout] = {}
        for path in self._leased.earlier_work(lease):
            with contextlib.suppress(UserError):  # a host that crashed left it damaged
                found |= {rollout.sample: rollout for rollout in read_rollouts(path)}
        return found
