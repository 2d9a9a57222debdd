"""Simulates the leases of many hosts that die, freeze, come back and differ in speed.

    python -m benchmarks.leases [--tiny] [--hosts N] [--tasks N] [--seed N]

The code of `runtime.leases` decides; time, hosts and the disk are simulated. A host runs one task
at a time. It dies at random, and its task is lost with it: the next host begins it again, which is
the worst case, because real workers resume trees and trajectories that were begun. It comes back
later as a new worker. Some hosts freeze instead, thaw, and finish what others have taken over
meanwhile; their late records must not count. Monotonic clocks of hosts have nothing in common.

The ideal schedule loses no work and divides it among all hosts that are up at any moment; no real
schedule can be faster. The fixed stride gives each host its share of the tasks for good. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import pathlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_workers import BEATS, WORKERS, Watch
from agentrm_jax.runtime.leases import Lease, LeasedTasks

LIST = "tasks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Setting of a simulation; times in seconds.

    Attributes:
      hosts: Number of hosts.
      tasks: Number of tasks.
      task_seconds: Median time of a task on a host of speed 1; lognormal.
      slow_share: Share of hosts that are five times slower.
      fails_after: Mean time until a host dies or freezes.
      freezes: Share of failures that are freezes.
      away: Mean time until a host is back.
      expire_seconds: Silence after which a worker counts as dead.
      seed: Seed of all random numbers.
    """

    hosts: int = 1000
    tasks: int = 5000
    task_seconds: float = 300.0
    slow_share: float = 0.05
    fails_after: float = 3600.0
    freezes: float = 0.2
    away: float = 600.0
    expire_seconds: float = 60.0
    seed: int = 0


@dataclasses.dataclass(slots=True)
class _Life:
    """A worker: a host from one start to the next death."""

    began: float
    frozen: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    died: float | None = None

    def beats(self, now: float, every: float) -> int:
        """The number of heartbeats up to now."""
        lived = min(now, self.died if self.died is not None else now) - self.began
        asleep = sum(min(end, now) - begin for begin, end in self.frozen if begin < now)
        return 1 + int(max(0.0, lived - asleep) / every)


class _Disk:
    """The files of all hosts; records of workers follow from their lives."""

    def __init__(self, setting: Setting) -> None:
        self.now, self.lives = 0.0, dict[str, _Life]()
        self.files: dict[str, dict[str, bytes]] = {LIST: {}}
        self.creates = self.refused = self.listings = self.reads = 0
        self._expire = setting.expire_seconds

    def create(self, name: str, content: bytes | pathlib.Path) -> bool:
        assert isinstance(content, bytes)
        folder, _, file = name.partition("/")
        self.creates += 1
        created = file not in self.files[folder]
        if created:
            self.files[folder][file] = content
        self.refused += not created
        return created

    def write(self, name: str, content: bytes) -> None:
        raise AssertionError("records of workers are simulated")

    def read(self, name: str) -> bytes | None:
        folder, _, file = name.partition("/")
        self.reads += 1
        if folder != WORKERS:
            return self.files[folder].get(file)
        life = self.lives[file]
        record = {
            "worker": file, "host": file, "machine": file, "pid": 1, "began": 0.0, "counts": {},
            "beat": life.beats(self.now, self._expire / BEATS), "ended": False,
            "expire_seconds": self._expire,
        }  # fmt: skip
        return json.dumps(record).encode()

    def names(self, folder: str) -> list[str]:
        self.listings += 1
        return list(self.lives if folder == WORKERS else self.files[folder])


@dataclasses.dataclass(slots=True)
class _Host:
    """A host: what it is now, and when it was up."""

    number: int
    speed: float
    skew: float
    up: bool = False
    frozen_until: float = 0.0
    worker: str = ""
    tasks: LeasedTasks | None = None
    lease: Lease | None = None
    spans: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    since: float = 0.0
    asleep: float = 0.0


class Simulation:
    """Runs the tasks of a setting to their end."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self._draw = setting, random.Random(setting.seed)
        self.disk = _Disk(setting)
        self.keys = [f"task {number}" for number in range(setting.tasks)]
        self.work = [setting.task_seconds * self._draw.lognormvariate(0.0, 0.5) for _ in self.keys]
        self.hosts = [
            _Host(
                n,
                0.2 if self._draw.random() < setting.slow_share else self._draw.uniform(0.7, 1.3),
                self._draw.uniform(-1e6, 1e6),
            )
            for n in range(setting.hosts)
        ]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.counted: list[int] = [0] * setting.tasks
        self.late = self.deaths = self.freezes = self.repeated = 0
        self.makespan = 0.0

    def run(self) -> None:
        """Simulates until every task has a record."""
        for host in self.hosts:
            self._at(self._draw.uniform(0.0, 60.0), lambda host=host: self._start(host))
        while not all(self.counted):
            self.disk.now, _, event = heapq.heappop(self._events)
            event()
        self.makespan = self.disk.now
        for host in self.hosts:
            if host.up:
                host.spans.append((host.since, self.makespan))

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _start(self, host: _Host) -> None:
        now, setting = self.disk.now, self.setting
        host.up, host.since, host.asleep = True, now, 0.0
        host.worker = f"host{host.number}-{self._count}"
        self.disk.lives[host.worker] = _Life(now)

        def clock() -> float:
            return self.disk.now + host.skew

        watch = Watch(self.disk, setting.expire_seconds, clock, machine=host.worker)
        config = LeasesConfig(enabled=True, expire_seconds=setting.expire_seconds)
        host.tasks = LeasedTasks(
            self.disk, LIST, self.keys, host.worker, watch, config=config, clock=clock
        )
        fails = now + self._draw.expovariate(1 / setting.fails_after)
        self._at(fails, lambda worker=host.worker: self._fail(host, worker))
        self._next(host, host.worker)

    def _next(self, host: _Host, worker: str) -> None:
        """Takes a task; a host that finds none looks again."""
        if not host.up or host.worker != worker or host.lease is not None:
            return
        if self.disk.now < host.frozen_until:
            self._at(host.frozen_until, lambda: self._next(host, worker))
            return
        assert host.tasks is not None
        leases = host.tasks.take(1) or host.tasks._take_again()
        if leases:
            [host.lease] = leases
            lease = leases[0]
            self.repeated += lease.epoch > 1
            seconds = self.work[lease.number] / host.speed
            self._at(self.disk.now + seconds, lambda: self._finish(host, worker, lease))
        elif not host.tasks.complete:
            wait = self.setting.expire_seconds / 2
            self._at(self.disk.now + wait, lambda: self._next(host, worker))

    def _finish(self, host: _Host, worker: str, lease: Lease) -> None:
        if host.worker != worker or not host.up:
            return  # it died before
        if host.asleep:  # it was frozen meanwhile, and the task with it
            later, host.asleep = self.disk.now + host.asleep, 0.0
            self._at(later, lambda: self._finish(host, worker, lease))
            return
        assert host.tasks is not None
        first = host.tasks.record(lease, worker.encode())
        self.counted[lease.number] += first
        self.late += not first
        host.lease = None
        self._next(host, worker)

    def _fail(self, host: _Host, worker: str) -> None:
        """A host dies with its task, or freezes with it and thaws later."""
        now, setting = self.disk.now, self.setting
        back = now + self._draw.expovariate(1 / setting.away)
        host.spans.append((host.since, now))
        life = self.disk.lives[worker]
        if self._draw.random() < setting.freezes:
            self.freezes += 1
            host.frozen_until, host.since = back, back
            host.asleep += back - now if host.lease is not None else 0.0
            life.frozen.append((now, back))
            fails = back + self._draw.expovariate(1 / setting.fails_after)
            self._at(fails, lambda: self._fail(host, worker))
            return
        self.deaths += 1
        life.died = now
        host.up, host.lease, host.tasks = False, None, None
        self._at(back, lambda: self._start(host))


def ideal_seconds(simulation: Simulation) -> float:
    """Returns when all work would be done if none was lost and all hosts shared it at any time."""
    events: list[tuple[float, float]] = []
    for host in simulation.hosts:
        for begin, end in host.spans:
            if end > begin:
                events += [(begin, host.speed), (end, -host.speed)]
    left, speed, before = sum(simulation.work), 0.0, 0.0
    for when, change in sorted(events):
        if speed > 0 and left <= speed * (when - before):
            return before + left / speed
        left -= speed * (when - before)
        speed, before = speed + change, when
    return before + left / max(speed, 1e-9)


def stride_seconds(simulation: Simulation) -> float:
    """Returns when the last host would be done if each had every N-th task, and lost none of it.

    Hosts are up as in the simulation, and for good after its end.
    """
    longest = 0.0
    for host in simulation.hosts:
        own = simulation.work[host.number :: simulation.setting.hosts]
        left = sum(own) / host.speed
        for begin, end in host.spans:
            if end <= begin:
                continue
            if left <= end - begin:
                longest, left = max(longest, begin + left), 0.0
                break
            left -= end - begin
        longest = max(longest, simulation.makespan + left) if left else longest
    return longest


def measured(setting: Setting) -> dict[str, Any]:
    """Returns the figures of a simulation."""
    began, simulation = time.monotonic(), Simulation(setting)
    simulation.run()
    disk, ideal = simulation.disk, ideal_seconds(simulation)
    records = sum(name.endswith(".record") for name in disk.files[LIST])
    return {
        "hosts": setting.hosts,
        "tasks": setting.tasks,
        "seed": setting.seed,
        "deaths": simulation.deaths,
        "freezes": simulation.freezes,
        "lost": setting.tasks - records,
        "recorded_twice": sum(count > 1 for count in simulation.counted),
        "late_records_that_did_not_count": simulation.late,
        "taken_again": simulation.repeated,
        "seconds": round(simulation.makespan, 1),
        "ideal_seconds": round(ideal, 1),
        "overhead": round(simulation.makespan / ideal - 1, 4),
        "fixed_stride_seconds": round(stride_seconds(simulation), 1),
        "creates_per_task": round(disk.creates / setting.tasks, 2),
        "refused_creates_per_task": round(disk.refused / setting.tasks, 2),
        "listings_per_host_hour": round(
            3600 * disk.listings / 2 / setting.hosts / simulation.makespan, 1
        ),
        "seconds_to_simulate": round(time.monotonic() - began, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.leases")
    parser.add_argument("--tiny", action="store_true", help="40 hosts, 200 tasks")
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    setting = Setting(hosts=given.hosts, tasks=given.tasks, seed=given.seed)
    if given.tiny:
        setting = dataclasses.replace(setting, hosts=40, tasks=200)
    found = measured(setting)
    for key, value in found.items():
        print(f"{key.replace('_', ' '):34} {value}")
    print(json.dumps(found))
    return int(bool(found["lost"] or found["recorded_twice"]))


if __name__ == "__main__":
    sys.exit(main())
