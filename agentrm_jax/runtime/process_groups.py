"""The processes that work on a stage: one, several that joined, or any number with leases.

Nothing here imports JAX.

A stage asks its group for three things: the tasks of a list, one by one; work that only one process
may do, with its result in all; and sums over all processes. One process gets all of it without a
file.

- `OneProcess`: this process alone.
- `joined_processes.JoinedProcesses`: those of `distributed.coordinator`, which end together. They
  share tasks by leases, and the first process does what only one may do.
- `LeasedProcesses`: those of `leases.enabled`. They have only a folder in common; work for one
  process is a task with a lease as well, and another process does it if its holder dies.
- `object_store.ObjectProcesses`: those of `leases.store`, which have only a bucket in common.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import FileStore, LeasesEnded, LeaseStore
from agentrm_jax.runtime.lease_workers import BEATS, WORKERS, Heartbeat, Watch
from agentrm_jax.runtime.leases import Lease
from agentrm_jax.runtime.task_files import SharedTasks

T = TypeVar("T")

FOLDER = ".leases"
"""The folder of leases and of results that are not joined yet, in the folder of a stage."""


def list_name(name: str) -> str:
    """Returns the folder of a list of tasks, in the store of leases."""
    return urllib.parse.quote(name, safe=" @+=,")


class ProcessGroup(Protocol):
    """The processes of a stage.

    Attributes:
      shared: Whether tasks are shared with other processes, so that `tasks` must be used.
      leased: Whether processes may join and die.
    """

    shared: bool
    leased: bool

    def once(self, name: str, work: Callable[[], T]) -> T:
        """Does work in one process and returns its result in all processes.

        All processes call it, in the same order.

        Args:
          name: A name for the work, of its own in the stage.
          work: Returns a value that JSON can hold. If its process dies, another does it again.

        Raises:
          LeasesEnded: The stage has ended meanwhile, or another process does the work.
        """
        ...

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Returns the sums of counters over all processes, those that ended before too."""
        ...

    def about(self, name: str, own: int) -> int:
        """Returns about the sum of a counter over all processes, without waiting for them.

        Args:
          name: The counter.
          own: Its value in this process.
        """
        ...

    def tasks(self, name: str, keys: Sequence[str], done: Collection[int] = ()) -> SharedTasks:
        """Returns the tasks of a list, see `LeasedTasks` of `runtime.leases`; only if `shared`."""
        ...

    def publish(self, counts: Callable[[], Mapping[str, float]]) -> None:
        """Shows counters of this process to the others; `counts` is called in another thread."""
        ...

    def check(self) -> None:
        """Called now and then by work that only one process may do.

        Raises:
          LeasesEnded: Another process has taken the work over.
        """
        ...

    def close(self) -> None:
        """Ends the heartbeats of this process and gives its leases back."""
        ...

    def remove(self) -> None:
        """Removes all leases: the stage has ended."""
        ...


class OneProcess:
    """A process that works alone."""

    shared = leased = False

    def once(self, name: str, work: Callable[[], T]) -> T:
        return work()

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        return dict(counts)

    def about(self, name: str, own: int) -> int:
        return own

    def tasks(self, name: str, keys: Sequence[str], done: Collection[int] = ()) -> SharedTasks:
        raise AssertionError("one process takes no leases")

    def publish(self, counts: Callable[[], Mapping[str, float]]) -> None:
        pass

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass

    def remove(self) -> None:
        pass


class LeaseGroup:
    """A group whose processes share tasks by leases in a folder.

    Args:
      directory: The folder of the stage; on a disk that all processes see.
      config: The leases.
      store: Where the leases are, if not in that folder.
    """

    shared, leased = True, False

    def __init__(
        self, directory: pathlib.Path, config: LeasesConfig, store: LeaseStore | None = None
    ) -> None:
        self.files, self._config = FileStore(directory / FOLDER), config
        if store is None:
            self.files.make(WORKERS)
        self.store = self.files if store is None else store
        self.heartbeat = Heartbeat(self.store, config.expire_seconds)
        self._watch = Watch(self.store, config.expire_seconds)

    def tasks(self, name: str, keys: Sequence[str], done: Collection[int] = ()) -> SharedTasks:
        return self._list(name, keys, done, self._config)

    def _list(
        self, name: str, keys: Sequence[str], done: Collection[int], config: LeasesConfig
    ) -> SharedTasks:
        name = list_name(name)
        self.files.add(name)
        worker, watch = self.heartbeat.worker, self._watch
        return SharedTasks(self.files, name, keys, worker, watch, config=config, done=done)

    def publish(self, counts: Callable[[], Mapping[str, float]]) -> None:
        self.heartbeat.counts = counts

    def check(self) -> None:
        pass

    def close(self) -> None:
        self.heartbeat.close()

    def remove(self) -> None:
        self.heartbeat.close()
        self.files.remove_all()


class LeasedProcesses(LeaseGroup):
    """Processes that have a folder in common and nothing else.

    Args:
      directory: The folder of the stage.
      config: The leases.
      ended: Returns whether the stage has ended.
      store: Where the leases are, if not in that folder.

    Raises:
      LeasesEnded: The stage has ended.
    """

    leased = True

    def __init__(
        self,
        directory: pathlib.Path,
        config: LeasesConfig,
        ended: Callable[[], bool] = lambda: False,
        store: LeaseStore | None = None,
    ) -> None:
        super().__init__(directory, config, store)
        self._ended = ended
        self._alone: tuple[SharedTasks, Lease] | None = None
        self._asked, self._others = -float("inf"), list[Mapping[str, float]]()
        if ended():  # between the caller's look and now; the folder was made again by mistake
            self.remove()
            raise LeasesEnded(str(directory))

    def once(self, name: str, work: Callable[[], T]) -> T:
        return self.alone(name, work)

    def alone(self, name: str, work: Callable[[], T]) -> T:
        """Does work in one process; the others wait for its result. See `ProcessGroup.once`."""
        alone = dataclasses.replace(self._config, repeat=False)
        tasks = self._list(name, [name], (), alone)
        while tasks.wait(self._check_ended):
            for lease in tasks.take(1):
                self._alone = (tasks, lease)
                try:
                    content = json_text({"value": work()}).encode()
                finally:
                    self._alone = None
                tasks.record(lease, content)
        content = tasks.result(0)
        if content is None:
            raise LeasesEnded(name)
        return parse_json(content)["value"]

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        before = self.heartbeat.counts
        self.heartbeat.counts = lambda: {**before(), **counts}
        self.heartbeat.beat()
        records = self._watch.records()
        return {key: sum(int(r.counts.get(key, 0)) for r in records) for key in counts}

    def about(self, name: str, own: int) -> int:
        now = time.monotonic()
        if now - self._asked >= self._config.expire_seconds / BEATS:
            self._asked = now
            mine = self.heartbeat.worker
            self._others = [r.counts for r in self._watch.records() if r.worker != mine]
        return own + sum(int(counts.get(name, 0)) for counts in self._others)

    def check(self) -> None:
        self._check_ended()
        if self._alone is not None and not self._alone[0].held(self._alone[1]):
            raise LeasesEnded("another process has taken the work over")

    def _check_ended(self) -> None:
        if self._ended():
            raise LeasesEnded("the stage has ended")
