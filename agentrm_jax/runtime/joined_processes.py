"""The group of processes that joined each other by `distributed.coordinator`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax

from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.process_groups import LeaseGroup
from agentrm_jax.runtime.processes import from_all, from_first

T = TypeVar("T")


class JoinedProcesses(LeaseGroup):
    """Processes that joined by `runtime.processes.join`; see `LeaseGroup`."""

    def __init__(self, directory: pathlib.Path, config: LeasesConfig) -> None:
        super().__init__(directory, config)
        from_all(None)  # each has a record, so that nobody takes more than its share

    def about(self, name: str, own: int) -> int:
        return own * jax.process_count()

    def once(self, name: str, work: Callable[[], T]) -> T:
        return from_first(work)

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        everywhere = from_all(dict(counts))
        return {key: sum(each[key] for each in everywhere) for key in counts}

    def remove(self) -> None:
        self.heartbeat.close()
        from_all(None)
        from_first(self.files.remove_all)
