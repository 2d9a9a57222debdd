"""The progress of a running stage, in a file of its folder, for `agentrm watch`.

The file is written at most once a second, and removed when the stage ends. No result depends on it.
"""

from __future__ import annotations

import os
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.json_files import read_record, write_json_atomic

ACTIVITY_FILE = ".activity.json"
WRITE_SECONDS = 1.0


class ActivityRecord(TypedDict):
    """The content of the file.

    Attributes:
      stage: The stage.
      host: The machine that works on it.
      pid: Its process.
      name: The loop that runs, such as `explore` or `best of n`.
      total: Length of the loop; None if it is not known.
      done: Items of the loop that are done.
      done_before: Items that an interrupted run had done.
      began: Unix time at which the loop began.
      updated: Unix time of this record.
      counts: Counters of the process since the loop began: `tokens_decoded`, `tokens_read`,
        `env_steps`, and seconds of work by part: `policy_seconds`, `environment_seconds`,
        `reward_seconds`. Unused counters are absent.
      shown: Values next to the progress bar, such as the loss.
    """

    stage: str
    host: str
    pid: int
    name: str
    total: int | None
    done: int
    done_before: int
    began: float
    updated: float
    counts: Mapping[str, float]
    shown: Mapping[str, float]


class Activity:
    """Writes the activity of a stage.

    Args:
      directory: The folder of the stage.
      stage: Its name.
      writes: Whether this process writes the file: one of several does.
    """

    def __init__(self, directory: pathlib.Path, stage: str, *, writes: bool) -> None:
        self._path, self._stage, self._writes = directory / ACTIVITY_FILE, stage, writes
        self.counts: Callable[[], Mapping[str, float]] = dict
        self._name, self._total, self._done, self._done_before = "", None, 0, 0
        self._began = self._written = 0.0
        self._counts_before: Mapping[str, float] = {}
        self._shown: dict[str, float] = {}

    def begin(self, name: str, total: int | None, done: int) -> None:
        """Begins a loop of `total` items, `done` of which an interrupted run has done."""
        self._name, self._total, self._done, self._done_before = name, total, done, done
        self._began, self._shown = time.time(), {}
        self._counts_before = self.counts()
        self._write()

    def advance(self, n: int, fields: Mapping[str, object]) -> None:
        """Counts finished items of the loop; writes the file if it is older than a second."""
        self._done += n
        numbers = {k: v for k, v in fields.items() if isinstance(v, int | float)}
        self._shown.update(numbers)
        if abs(time.time() - self._written) >= WRITE_SECONDS:
            self._write()

    def end(self) -> None:
        """Removes the file: the stage has ended."""
        if self._writes:
            self._path.unlink(missing_ok=True)

    @property
    def done(self) -> int:
        """Items of the loop that are done."""
        return self._done

    def progress(self) -> str:
        """Returns how far the loop is, such as `explore: 246 of 768`."""
        of = "" if self._total is None else f" of {self._total:,}"
        return f"{self._name}: {self._done:,}{of}"

    def _write(self) -> None:
        if not self._writes:
            return
        self._written = time.time()
        before, now = self._counts_before, self.counts()
        record: ActivityRecord = {
            "stage": self._stage,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "name": self._name,
            "total": self._total,
            "done": self._done,
            "done_before": self._done_before,
            "began": self._began,
            "updated": self._written,
            "counts": {key: value - before.get(key, 0) for key, value in now.items()},
            "shown": dict(self._shown),
        }
        write_json_atomic(self._path, record)


def read_activity(directory: pathlib.Path) -> ActivityRecord | None:
    """Returns the activity of a stage, None if its folder has no sound file of it.

    Args:
      directory: The folder of the stage.
    """
    path = directory / ACTIVITY_FILE
    kinds = {"stage": str, "name": str, "counts": dict, "shown": dict, "host": str}
    numbers = {"done": int, "done_before": int, "pid": int, "total": int | None}
    times = {"began": int | float, "updated": int | float}
    if not path.exists():
        return None
    try:
        record: ActivityRecord = read_record(path, **kinds, **numbers, **times)  # pyright: ignore[reportAssignmentType]
    except UserError:  # a damaged file must not stop `agentrm watch`
        return None
    return record
