"""The status of a run whose processes share tasks by leases, from its files: who holds what.

Nothing here imports JAX, waits for the run, or changes a file of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from typing import Literal

import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.runtime.buckets import Bucket, open_bucket
from agentrm_jax.runtime.lease_files import FileStore, LeasesEnded
from agentrm_jax.runtime.lease_workers import WORKERS, Watch, WorkerRecord
from agentrm_jax.runtime.leases import TASKS, LeaseRecord, lease_name, lease_record, list_state
from agentrm_jax.runtime.object_store import ObjectStore
from agentrm_jax.runtime.process_groups import FOLDER
from agentrm_jax.runtime.run_directory import STAGE_FILE
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.task_files import task_names


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """A process that works on a stage, or did.

    Attributes:
      record: Its record.
      renewed_seconds: Seconds since the record was renewed, by the clock of the disk.
      state: `alive`; `silent` for longer than its leases last, or its process is gone; `ended`.
    """

    record: WorkerRecord
    renewed_seconds: float
    state: Literal["alive", "silent", "ended"]

    @property
    def expires_seconds(self) -> float:
        """Seconds until its leases end if it stays silent, 0 if they have ended."""
        if self.state != "alive":
            return 0.0
        return max(0.0, self.record.expire_seconds - self.renewed_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LeaseStatus:
    """A task that was taken and has no record.

    Attributes:
      record: The newest lease.
      epoch: How often the task was taken.
      taken_seconds: Seconds since then, by the clock of the disk.
      worker: Who holds it; None if its record cannot be read.
    """

    record: LeaseRecord
    epoch: int
    taken_seconds: float
    worker: WorkerStatus | None

    @property
    def stale(self) -> bool:
        """Whether its holder is dead or has ended: the next process takes it over."""
        return self.worker is None or self.worker.state != "alive"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ListStatus:
    """A list of tasks.

    Attributes:
      name: The file that the results are joined into, or the work.
      tasks: The number of tasks.
      recorded: The number of tasks with a record.
      leases: The tasks that were taken and have no record.
    """

    name: str
    tasks: int
    recorded: int
    leases: tuple[LeaseStatus, ...]

    @property
    def free(self) -> int:
        """The number of tasks that nobody has taken. Some may have been done by one process."""
        return self.tasks - self.recorded - len(self.leases)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """A stage whose tasks are leased.

    Attributes:
      name: Its name.
      workers: Its processes.
      lists: Its lists of tasks, the newest last.
    """

    name: str
    workers: tuple[WorkerStatus, ...]
    lists: tuple[ListStatus, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """The status of a run.

    Attributes:
      ended: The stages that have ended.
      stages: The stages with leases.
    """

    ended: tuple[str, ...]
    stages: tuple[StageStatus, ...]


def run_status(directory: pathlib.Path) -> RunStatus:
    """Returns who works on a run with leases, and on which tasks.

    Args:
      directory: The folder of the run.

    Raises:
      UserError: It is no folder of a run.
    """
    paths = RunPaths(directory)
    if not paths.config.is_file():
        raise UserError(f"{directory}: is no folder of a run (it has no {paths.config.name})")
    ended = [name for name, folder in paths.stages.items() if (folder / STAGE_FILE).exists()]
    found: list[StageStatus] = []
    if (bucket := bucket_of(paths)) is not None:
        stores = (ObjectStore(bucket, name, FileStore(folder / FOLDER))
                  for name, folder in paths.stages.items() if name not in ended)  # fmt: skip
        found += [_stage(store.stage, _BucketFiles(store)) for store in stores if store.lists()]
        return RunStatus(ended=tuple(ended), stages=tuple(found))
    for name, folder in {**paths.stages, "report": directory}.items():
        if (folder / FOLDER / WORKERS).is_dir():
            with contextlib.suppress(LeasesEnded, FileNotFoundError):  # it ended during the look
                found.append(_stage(name, _FolderFiles(folder / FOLDER)))
    return RunStatus(ended=tuple(ended), stages=tuple(found))


class _FolderFiles:
    """The leases of a stage in its folder, with their times by the clock of the disk."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.store, self._directory = FileStore(directory), directory
        self._now = _disk_time(directory)

    def age(self, name: str) -> float:
        return self._now - (self._directory / name).stat().st_mtime

    def lists(self) -> dict[str, list[str]]:
        """The tasks of each list, the newest list last."""
        paths = [path for path in self._directory.iterdir() if path.name != WORKERS]
        folders = sorted(
            (path for path in paths if path.is_dir()), key=lambda path: path.stat().st_mtime
        )
        names = ((path.name, task_names(path)) for path in folders)
        return {name: tasks for name, tasks in names if tasks is not None}


class _BucketFiles:
    """The leases of a stage in a bucket, with their times by the clock of the store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self._now = store, time.time()

    def age(self, name: str) -> float:
        return self._now - self.store.written(name)

    def lists(self) -> dict[str, list[str]]:
        """The tasks of each list, the newest list last."""
        found = {name: self.store.read(f"{name}/{TASKS}") for name in self.store.lists()}
        tasks = {name: parse_json(content) for name, content in found.items() if content}
        order = sorted(tasks, key=lambda name: self.store.written(f"{name}/{TASKS}"))
        return {name: list(map(str, tasks[name])) for name in order}


def _stage(name: str, files: _FolderFiles | _BucketFiles) -> StageStatus:
    watch = Watch(files.store, float("inf"))
    workers: dict[str, WorkerStatus] = {}
    for record in watch.records():
        silence = files.age(f"{WORKERS}/{record.worker}")
        state = "alive"
        if record.ended:
            state = "ended"
        elif silence > record.expire_seconds or watch.is_dead(record.worker):
            state = "silent"
        workers[record.worker] = WorkerStatus(
            record=record, renewed_seconds=max(0.0, silence), state=state
        )
    lists = [
        ListStatus(
            name=urllib.parse.unquote(each),
            tasks=len(tasks),
            recorded=len(list_state(files.store, each).recorded),
            leases=tuple(_leases(files, each, workers)),
        )
        for each, tasks in files.lists().items()
    ]
    return StageStatus(name=name, workers=tuple(workers.values()), lists=tuple(lists))


def _leases(
    files: _FolderFiles | _BucketFiles, name: str, workers: dict[str, WorkerStatus]
) -> Iterator[LeaseStatus]:
    state = list_state(files.store, name)
    for number, epoch in sorted(state.epochs.items()):
        if number in state.recorded:
            continue
        path = lease_name(name, number, epoch)
        record = lease_record(files.store.read(path))
        if record is None or not record.worker:
            continue
        yield LeaseStatus(
            record=record,
            epoch=epoch,
            taken_seconds=max(0.0, files.age(path)),
            worker=workers.get(record.worker),
        )


def bucket_of(paths: RunPaths) -> Bucket | None:
    """Returns the bucket of a run, None if its leases are in its folder.

    Raises:
      UserError: The bucket cannot be used.
    """
    try:
        config = yaml.safe_load(paths.config.read_text())
        url = (config.get("leases") or {}).get("store")
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return None
    return open_bucket(url) if isinstance(url, str) else None


def _disk_time(directory: pathlib.Path) -> float:
    """The time by the clock that sets the times of files, which may be that of a server."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".", dir=directory) as file:
            return os.stat(file.name).st_mtime
    except OSError:  # a disk that can only be read
        return time.time()
