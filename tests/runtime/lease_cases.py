"""A store of leases in memory, and a clock that tests set."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_workers import WORKERS, Watch
from agentrm_jax.runtime.leases import LeasedTasks


class MemoryStore:
    """A `LeaseStore` in memory."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}

    def create(self, name: str, content: bytes | pathlib.Path) -> bool:
        folder, _, file = name.partition("/")
        assert isinstance(content, bytes)
        return self.files.setdefault(folder, {}).setdefault(file, content) is content

    def write(self, name: str, content: bytes) -> None:
        folder, _, file = name.partition("/")
        self.files.setdefault(folder, {})[file] = content

    def read(self, name: str) -> bytes | None:
        folder, _, file = name.partition("/")
        return self.files.get(folder, {}).get(file)

    def names(self, folder: str) -> list[str]:
        return list(self.files.get(folder, {}))


@dataclasses.dataclass
class Clock:
    """Seconds that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A worker of a test, with a clock of its own."""

    def __init__(self, store, name: str, tasks: int, clock: Clock, expire: float = 60.0) -> None:
        self.store, self.name, self.expire, self.beats = store, name, expire, 0
        self.beat()
        watch = Watch(store, expire, clock, machine=f"machine of {name}")
        config = LeasesConfig(enabled=True, expire_seconds=expire)
        keys = [f"task {n}" for n in range(tasks)]
        self.tasks = LeasedTasks(store, "list", keys, name, watch, config=config, clock=clock)

    def beat(self, *, ended: bool = False) -> None:
        self.beats += 1
        record = {
            "worker": self.name, "host": self.name, "machine": f"machine of {self.name}",
            "pid": 1, "beat": self.beats, "expire_seconds": self.expire, "ended": ended,
            "began": 0.0, "counts": {},
        }  # fmt: skip
        self.store.write(f"{WORKERS}/{self.name}", json.dumps(record).encode())
