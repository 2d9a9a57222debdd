"""Leases: workers take tasks one by one from a list, and the result of each counts once.

A list is the same for all workers. A worker takes a task by creating the file of its lease, which
only one worker can create. The record of a task is created in the same way: the first one counts.
If a worker is silent for too long, another takes its tasks with the next epoch: a new lease next to
the old one, so that nothing is overwritten and clocks need not agree. The worker that was slow or
frozen may still finish: its record counts if it is the first.

    STORE/workers/WORKER        renewed by heartbeats (`runtime.lease_workers`)
    STORE/LIST/tasks            the names of the tasks
    STORE/LIST/N.EPOCH.lease    task N is taken, and by whom
    STORE/LIST/N.record         its result
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import re
import time
from collections.abc import Callable, Collection, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import LeaseStore
from agentrm_jax.runtime.lease_workers import BEATS, Watch

TASKS = "tasks"
_LEASE = re.compile(r"(\d+)\.(\d+)\.lease")
_RECORD = re.compile(r"(\d+)\.record")
_IS_RECORD = -1
_WATCHED = 64  # living workers that one worker watches


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A task that this worker has taken.

    Attributes:
      number: Its number in the list.
      key: Its name in the list.
      epoch: How often the task was taken, this time included.
    """

    number: int
    key: str
    epoch: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord:
    """The content of the file of a lease.

    Attributes:
      task: The name of the task.
      worker: Who holds it; empty if the worker before gave the task back.
      repeats: Whether the holder before was not dead: the task is run twice.
      taken: Unix time by the worker's clock, for people.
    """

    task: str
    worker: str
    repeats: bool
    taken: float


def lease_record(content: bytes | None) -> LeaseRecord | None:
    """Returns the content of a lease, None if the file is absent or damaged."""
    try:
        value = parse_json(content or b"")
        return LeaseRecord(
            task=str(value["task"]),
            worker=str(value["worker"]),
            repeats=bool(value["repeats"]),
            taken=float(value["taken"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class ListState:
    """The state of a list, as its files say.

    Attributes:
      epochs: The newest epoch of each task that was taken.
      recorded: The tasks that have a record.
    """

    epochs: dict[int, int]
    recorded: set[int]


def list_state(store: LeaseStore, name: str) -> ListState:
    """Returns the state of a list.

    Raises:
      LeasesEnded: The store was removed.
    """
    epochs: dict[int, int] = {}
    recorded: set[int] = set()
    for file in store.names(name):
        number, epoch = _parsed(file)
        if epoch > epochs.get(number, 0):
            epochs[number] = epoch
        elif epoch == _IS_RECORD:
            recorded.add(number)
    return ListState(epochs, recorded)


@functools.lru_cache(maxsize=1 << 17)
def _parsed(file: str) -> tuple[int, int]:
    """The task of a file, and the epoch of a lease, or `_IS_RECORD`; 0 for other files."""
    if match := _LEASE.fullmatch(file):
        return int(match[1]), int(match[2])
    if match := _RECORD.fullmatch(file):
        return int(match[1]), _IS_RECORD
    return 0, 0


def record_name(name: str, number: int) -> str:
    """Returns the file of a task's result."""
    return f"{name}/{number:06d}.record"


def lease_name(name: str, number: int, epoch: int) -> str:
    """Returns the file of a lease."""
    return f"{name}/{number:06d}.{epoch}.lease"


class LeasedTasks:
    """The tasks of a list, as one worker takes and records them.

    Args:
      store: The store of leases; the folder of the list is there.
      name: The name of the list.
      keys: The names of its tasks; all workers give the same.
      worker: The name of this worker.
      watch: Finds the workers that are dead.
      config: The leases.
      done: Numbers of tasks whose result is elsewhere.
      clock: Monotonic seconds.

    Raises:
      UserError: Another worker has other tasks in this list.
      LeasesEnded: The store was removed.
    """

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        keys: Sequence[str],
        worker: str,
        watch: Watch,
        *,
        config: LeasesConfig,
        done: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.keys, self.config = name, keys, config
        self.store, self.worker = store, worker
        self._watch, self._clock = watch, clock
        self._before = frozenset(done)
        self._done: set[int] = set(self._before)
        self._epochs: dict[int, int] = {}
        self._held: dict[int, Lease] = {}
        self._owners: dict[tuple[int, int], LeaseRecord | None] = {}
        self._first_seen: dict[tuple[int, int], float] = {}
        self._free: list[int] = []
        self._stale: list[int] = []
        self._taken_again: list[Lease] = []
        self._looked, self._alive = -float("inf"), 1
        self._start = int.from_bytes(hashlib.sha256(worker.encode()).digest()[:8], "big")
        self._check_same()
        self.look()

    def _check_same(self) -> None:
        own = json_text(list(self.keys)).encode()
        name = f"{self.name}/{TASKS}"
        if not self.store.create(name, own) and self.store.read(name) not in (own, None):
            raise UserError(
                f"{self.name}: another process works on other tasks in this folder; give all "
                "processes the same configuration, and the same data and versions on each host"
            )

    @property
    def complete(self) -> bool:
        """Whether every task has a record, as of the last look."""
        return len(self._done) == len(self.keys)

    @property
    def num_done(self) -> int:
        """The number of tasks that have a record, as of the last look."""
        return len(self._done)

    @property
    def num_free(self) -> int:
        """The number of tasks that may be taken; looks again now and then if there are none."""
        if not self._free and not self._stale and not self._taken_again and not self.complete:
            self._look_when_due()
        return len(self._free) + len(self._stale) + len(self._taken_again)

    @property
    def share(self) -> int:
        """The number of free tasks for each living worker, rounded up; 1 at least."""
        return max(1, -(-self.num_free // self._alive))

    def wait(self, check: Callable[[], None] = lambda: None) -> bool:
        """Waits until a task can be taken; returns False if all are recorded.

        Args:
          check: Called while it waits; may raise something to end the wait.
        """
        self.look()
        while not self.complete:
            if self.num_free:
                return True
            self._taken_again = self._take_again()
            if not self._taken_again:
                check()
                time.sleep(min(1.0, self.poll_seconds))
        return False

    def take(self, count: int) -> list[Lease]:
        """Takes tasks that are free, or whose worker is dead.

        It takes no more than this worker's share, so that later workers find some.

        Args:
          count: Most tasks.

        Returns:
          The leases; fewer than `count`, or none, if other workers were quicker.
        """
        taken, self._taken_again = self._taken_again, []
        left = min(count, self.share) if self.num_free else 0
        while len(taken) < left and (self._free or self._stale):
            number = (self._free or self._stale).pop()
            if (lease := self._create(number, repeats=False)) is not None:
                taken.append(lease)
            else:
                self._look_when_due()
        return taken

    def _take_again(self) -> list[Lease]:
        """Takes a task on which another worker has worked for long, so that it is run twice.

        A task is repeated by one worker at a time.
        """
        if not self.config.repeat:
            return []
        self._look_when_due()
        now = self._clock()
        waiting = [
            (seen, number)
            for number, epoch in self._epochs.items()
            if number not in self._done and number not in self._held
            if now - (seen := self._first_seen[number, epoch]) >= self.config.expire_seconds
            if (owner := self._owner(number, epoch)) is not None and not owner.repeats
        ]
        for _, number in sorted(waiting, key=lambda each: (each[0], self._order(each[1]))):
            if (lease := self._create(number, repeats=True)) is not None:
                return [lease]
        return []

    def record(self, lease: Lease, content: bytes | pathlib.Path) -> bool:
        """Records the result of a task; returns whether it is the first one, which counts.

        Args:
          lease: The lease.
          content: The result, or a complete file of it on the same disk.

        Raises:
          LeasesEnded: The store was removed: the results of all tasks were there.
        """
        first = self.store.create(record_name(self.name, lease.number), content)
        self._done.add(lease.number)
        self._held.pop(lease.number, None)
        return first

    def give_back(self) -> None:
        """Gives back what was taken and not recorded."""
        for lease in self._held.values():
            self._put(lease.number, lease.epoch + 1, worker="", repeats=False)
        self._held.clear()

    def result(self, number: int) -> bytes | None:
        """Returns the recorded result of a task, None if there is none in the store."""
        return self.store.read(record_name(self.name, number))

    def look(self) -> None:
        """Reads the state of the list again.

        Raises:
          LeasesEnded: The store was removed.
        """
        state = list_state(self.store, self.name)
        self._looked = now = self._clock()
        self._alive = self._watch.num_alive()
        self._done = {*self._before, *state.recorded}
        self._epochs = state.epochs
        for each in state.epochs.items():
            self._first_seen.setdefault(each, now)
        open_tasks = [n for n in range(len(self.keys)) if n not in self._done]
        # Taken from the end. Workers begin in different places, so that few try the same task.
        open_tasks.sort(key=self._order, reverse=True)
        self._free = [n for n in open_tasks if n not in state.epochs]
        self._stale = self._stale_of([n for n in reversed(open_tasks) if n in state.epochs])

    def held(self, lease: Lease) -> bool:
        """Returns whether no other worker has taken the task of a lease since."""
        state = list_state(self.store, self.name)
        return state.epochs.get(lease.number, 0) <= lease.epoch

    @property
    def poll_seconds(self) -> float:
        """Seconds between two looks of one worker: longer if there are many workers."""
        return min(self.config.expire_seconds / BEATS, max(0.2, 0.02 * self._alive))

    def _look_when_due(self) -> None:
        if self._clock() - self._looked >= self.poll_seconds:
            self.look()

    def _order(self, number: int) -> int:
        """The position of a task in the order in which this worker tries free tasks."""
        return (number - self._start) % max(1, len(self.keys))

    def _stale_of(self, taken: Sequence[int]) -> list[int]:
        """Returns the tasks that no living worker holds, in reverse order.

        Of many living workers only some are watched, different ones by each worker.
        """
        stale, alive = list[int](), set[str]()
        for number in taken:
            if number in self._held:
                continue
            owner = self._owner(number, self._epochs[number])
            if owner is None or owner.worker in ("", self.worker):
                stale.append(number)
            elif owner.worker in alive or len(alive) >= _WATCHED:
                continue
            elif self._watch.is_dead(owner.worker):
                stale.append(number)
            else:
                alive.add(owner.worker)
        return stale[::-1]

    def _owner(self, number: int, epoch: int) -> LeaseRecord | None:
        key = (number, epoch)
        if self._owners.get(key) is None:
            name = lease_name(self.name, number, epoch)
            self._owners[key] = lease_record(self.store.read(name))
        return self._owners[key]

    def _create(self, number: int, *, repeats: bool) -> Lease | None:
        """Takes a task; returns None if another worker was quicker."""
        epoch = self._epochs.get(number, 0) + 1
        created = self._put(number, epoch, worker=self.worker, repeats=repeats)
        self._epochs[number] = epoch
        self._first_seen.setdefault((number, epoch), self._clock())
        if not created:
            return None
        self._held[number] = lease = Lease(number=number, key=self.keys[number], epoch=epoch)
        return lease

    def _put(self, number: int, epoch: int, *, worker: str, repeats: bool) -> bool:
        record = LeaseRecord(
            task=self.keys[number], worker=worker, repeats=repeats, taken=time.time()
        )
        content = json_text(dataclasses.asdict(record)).encode()
        return self.store.create(lease_name(self.name, number, epoch), content)
