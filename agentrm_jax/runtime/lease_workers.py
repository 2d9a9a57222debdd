"""The workers of a stage: each renews a record by heartbeats; a silent worker counts as dead.

A record says after how many seconds without a renewal its worker counts as dead. Nobody compares
the clocks of two machines: a reader looks at the counter of the record, and measures with its own
monotonic clock for how long the counter stays the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.runtime.lease_files import LeasesEnded, LeaseStore

WORKERS = "workers"
"""The folder of the records, in the store of leases."""

BEATS = 4
"""Heartbeats in the time after which a silent worker counts as dead."""

_FEW = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WorkerRecord:
    """The record of a worker.

    Attributes:
      worker: Its name, unique over restarts.
      host: The name of its machine, for people.
      machine: The name of its machine, see `machine_name`.
      pid: Its process.
      beat: The counter, which every heartbeat increases.
      expire_seconds: Seconds after which the worker counts as dead if the counter stays the same.
      ended: Whether it has ended and given back all its leases.
      began: Unix time of its start by its own clock, for people.
      counts: Counters such as `tokens_decoded`.
    """

    worker: str
    host: str
    machine: str
    pid: int
    beat: int
    expire_seconds: float
    ended: bool
    began: float
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def worker_record(content: bytes | None) -> WorkerRecord | None:
    """Returns the record in a file, None if the file is absent or damaged."""
    try:
        value = parse_json(content or b"")
        numbers = {str(key): float(number) for key, number in value["counts"].items()}
        return WorkerRecord(
            worker=str(value["worker"]),
            host=str(value["host"]),
            machine=str(value["machine"]),
            pid=int(value["pid"]),
            beat=int(value["beat"]),
            expire_seconds=float(value["expire_seconds"]),
            ended=bool(value["ended"]),
            began=float(value["began"]),
            counts=numbers,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def machine_name() -> str:
    """Returns a name of this machine and process namespace, which changes when it is started again.

    Within one name, process numbers are unique: containers of a machine have different names.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


class Heartbeat:
    """Renews the record of this worker from a thread of its own.

    Args:
      store: The store of leases.
      expire_seconds: See `WorkerRecord`.
      counts: Returns the counters of the record; called in the thread.

    Attributes:
      worker: The name of the worker.
      counts: As given; may be replaced.
    """

    def __init__(
        self,
        store: LeaseStore,
        expire_seconds: float,
        counts: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        host, pid = socket.gethostname(), os.getpid()
        letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in host)[:40]
        self.worker = f"{letters}-{pid}-{uuid.uuid4().hex[:8]}"
        self.counts = counts
        self._record = WorkerRecord(
            worker=self.worker,
            host=host,
            machine=machine_name(),
            pid=pid,
            beat=0,
            expire_seconds=expire_seconds,
            ended=False,
            began=time.time(),
        )
        self._store, self._ends, self._lock = store, threading.Event(), threading.Lock()
        self.beat()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def beat(self, *, ended: bool = False) -> None:
        """Renews the record now."""
        with self._lock:
            self._record = dataclasses.replace(
                self._record, beat=self._record.beat + 1, ended=ended, counts=dict(self.counts())
            )
            text = json_text(dataclasses.asdict(self._record))
            self._store.write(f"{WORKERS}/{self.worker}", text.encode())

    def close(self) -> None:
        """Ends the thread and gives all leases of the worker back."""
        self._ends.set()
        self._thread.join()
        with contextlib.suppress(LeasesEnded, OSError, UserError):
            self.beat(ended=True)

    def _run(self) -> None:
        while not self._ends.wait(self._record.expire_seconds / BEATS):
            try:
                self.beat()
            except LeasesEnded:
                return
            except (OSError, UserError):
                # A full disk, or a server or a store that is away: the next heartbeat tries again.
                continue


@dataclasses.dataclass(slots=True)
class _Seen:
    """A record as this process saw it last.

    Attributes:
      record: The record; None if there was none that could be read.
      looked: The time of the last look.
      unchanged: Seconds for which the counter stayed the same.
    """

    record: WorkerRecord | None
    looked: float
    unchanged: float = 0.0


class Watch:
    """Finds dead workers by their records.

    Args:
      store: The store of leases.
      expire_seconds: Used for workers whose record cannot be read.
      clock: Monotonic seconds.
      machine: See `machine_name`; a worker of the same machine whose process is gone is dead at
        once.
    """

    def __init__(
        self,
        store: LeaseStore,
        expire_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        machine: str | None = None,
    ) -> None:
        self._store, self._expire_seconds, self._clock = store, expire_seconds, clock
        self._machine = machine_name() if machine is None else machine
        self._seen: dict[str, _Seen] = {}
        self._dead: set[str] = set()

    def is_dead(self, worker: str) -> bool:
        """Returns whether a worker has ended, or was silent for as long as its record says."""
        now = self._clock()
        seen = self._seen.get(worker)
        if seen is None:
            seen = self._seen[worker] = _Seen(self._read(worker), now)
        elif now - seen.looked >= self._expires(seen) / (4 * BEATS):
            record, before = self._read(worker), seen.record
            if record is not None and (before is None or record.beat != before.beat):
                seen.record, seen.unchanged = record, 0.0
            else:
                # A reader that was itself frozen has missed heartbeats: one look counts for one.
                seen.unchanged += min(now - seen.looked, self._expires(seen) / BEATS)
            seen.looked = now
        record = seen.record
        dead = seen.unchanged >= self._expires(seen)
        dead = dead or (record is not None and (record.ended or self._is_gone(record)))
        (self._dead.add if dead else self._dead.discard)(worker)
        return dead

    def records(self) -> list[WorkerRecord]:
        """Returns the records of all workers, dead ones too."""
        found = (self._read(name) for name in sorted(self._store.names(WORKERS)))
        return [record for record in found if record is not None]

    def num_alive(self) -> int:
        """Returns the number of workers that are not known to be dead, 1 at least.

        If there are many workers, not all records are read, so that some dead workers may count.
        """
        names = self._store.names(WORKERS)
        if len(names) <= _FEW:
            return max(1, sum(not self.is_dead(name) for name in names))
        return max(1, sum(name not in self._dead for name in names))

    def _read(self, worker: str) -> WorkerRecord | None:
        record = worker_record(self._store.read(f"{WORKERS}/{worker}"))
        return record if record is not None and record.worker == worker else None

    def _expires(self, seen: _Seen) -> float:
        return self._expire_seconds if seen.record is None else seen.record.expire_seconds

    def _is_gone(self, record: WorkerRecord) -> bool:
        if record.machine != self._machine:
            return False
        try:
            os.kill(record.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        return False
