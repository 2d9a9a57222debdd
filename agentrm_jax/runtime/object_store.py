"""Leases in a bucket, for hosts whose only common storage is an object store.

The leases and the finished records of tasks are objects (`runtime.buckets`). The files in which a
host works stay on its own disk: a host that takes a task over begins it again, unless it finds
files of its own. At the end of a list each host reads all records into its own folder.

    BUCKET/STAGE/workers/WORKER        renewed by heartbeats
    BUCKET/STAGE/LIST/N.EPOCH.lease    task N is taken, and by whom
    BUCKET/STAGE/LIST/N.record         its result
    STAGE/.leases/LIST/                work of this host, and records that it has read
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from agentrm_jax.core.json_values import json_text
from agentrm_jax.runtime.buckets import Bucket
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import FileStore
from agentrm_jax.runtime.lease_workers import WORKERS
from agentrm_jax.runtime.leases import TASKS, Lease, list_state, record_name
from agentrm_jax.runtime.process_groups import LeasedProcesses, list_name
from agentrm_jax.runtime.task_files import SharedTasks

T = TypeVar("T")

_POLL_SECONDS = 2.0


class ObjectStore:
    """A `LeaseStore` in a bucket.

    Args:
      bucket: The bucket.
      stage: The name of the stage.
      files: The folder of leases of this host alone: its unfinished work, and records.
    """

    def __init__(self, bucket: Bucket, stage: str, files: FileStore) -> None:
        self._bucket, self.stage, self.files = bucket, stage, files

    def create(self, name: str, content: bytes | pathlib.Path) -> bool:
        data = content.read_bytes() if isinstance(content, pathlib.Path) else content
        return self._bucket.create(f"{self.stage}/{name}", data)

    def write(self, name: str, content: bytes) -> None:
        self._bucket.write(f"{self.stage}/{name}", content)

    def read(self, name: str) -> bytes | None:
        return self._bucket.read(f"{self.stage}/{name}")

    def names(self, folder: str) -> list[str]:
        return self._bucket.names(f"{self.stage}/{folder}")

    def lists(self) -> list[str]:
        """Returns the names of the lists of tasks."""
        return [name for name in self._bucket.names(self.stage) if name != WORKERS]

    def written(self, name: str) -> float:
        """Returns the Unix time at which an object was written, by the clock of the store."""
        return self._bucket.written(f"{self.stage}/{name}")


def fetch_lists(store: ObjectStore) -> None:
    """Reads the lists of tasks of a stage, and their records, into the folder of this host.

    Args:
      store: The leases of the stage.
    """
    for name in store.lists():
        content = store.read(f"{name}/{TASKS}")
        if content is None:
            continue
        (store.files.directory / name).mkdir(parents=True, exist_ok=True)
        store.files.write(f"{name}/{TASKS}", content)
        _fetch(store, name, list_state(store, name).recorded)


def _fetch(store: ObjectStore, name: str, numbers: Iterable[int]) -> None:
    """Reads the records that this host does not have."""
    for number in numbers:
        record = record_name(name, number)
        if not store.files.path(record).exists() and (found := store.read(record)) is not None:
            store.files.write(record, found)


class ObjectTasks(SharedTasks):
    """Leased tasks in a bucket, with the files of this host in a folder of its own."""

    store: ObjectStore  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def files(self) -> FileStore:
        return self.store.files

    def record_work(self, lease: Lease) -> bool:
        path = self.work_path(lease)
        first = self.record(lease, path)
        if first:
            os.replace(path, self.files.path(record_name(self.name, lease.number)))
        else:
            path.unlink(missing_ok=True)
        return first

    def collect(self) -> FileStore:
        """Reads the records that this host does not have; returns the folder of all records."""
        _fetch(self.store, self.name, (n for n in range(len(self.keys)) if n not in self._before))
        return self.files

    def look(self) -> None:
        """Reads the state again; stale tasks that this host has begun come first."""
        super().look()
        files = self.files.path(self.name).glob("*.work")
        begun = {int(path.name.partition(".")[0]) for path in files}
        self._free += [number for number in self._stale if number in begun]
        self._stale = [number for number in self._stale if number not in begun]

    @property
    def poll_seconds(self) -> float:
        """Seconds between two looks: no less than two, because each costs a request."""
        return max(super().poll_seconds, min(_POLL_SECONDS, self.config.expire_seconds / 4))


class ObjectProcesses(LeasedProcesses):
    """Processes that have a bucket in common, and a folder each.

    What only one process may do with common files, each does with its own (`once`): the records
    are the same everywhere, and so are the results. Work that is long is done by one (`alone`).

    Args:
      store: The leases of the stage.
      config: The leases.
      ended: Returns whether the stage has ended.

    Raises:
      LeasesEnded: The stage has ended.
    """

    def __init__(
        self, store: ObjectStore, config: LeasesConfig, ended: Callable[[], bool] = lambda: False
    ) -> None:
        folder = store.files.directory
        folder.mkdir(parents=True, exist_ok=True)
        self._objects = store
        super().__init__(folder.parent, config, ended, store=store)

    def once(self, name: str, work: Callable[[], T]) -> T:
        return work()

    def _list(
        self, name: str, keys: Sequence[str], done: Collection[int], config: LeasesConfig
    ) -> SharedTasks:
        name, store = list_name(name), self._objects
        store.files.add(name)
        store.files.write(f"{name}/{TASKS}", json_text(list(keys)).encode())
        worker, watch = self.heartbeat.worker, self._watch
        return ObjectTasks(store, name, keys, worker, watch, config=config, done=done)
