"""Files of leased tasks: the unfinished work on each, and the results joined into one file.

A worker appends its records of a task to a file of its own. The complete file becomes the record
of the task by a hard link, see `runtime.leases`; a worker that takes the task over reads what the
one before it left. `join_records` writes the records of all tasks into the file that they belong
to.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import printable
from agentrm_jax.runtime.json_lines import sound_lines
from agentrm_jax.runtime.lease_files import FileStore, LeasesEnded
from agentrm_jax.runtime.leases import TASKS, Lease, LeasedTasks, list_state, record_name

TaskOf = Callable[[Any], str]
"""Returns the task of a record."""

_WORK = re.compile(r"(\d+)\.\d+\.(.+)\.work")


class SharedTasks(LeasedTasks):
    """Leased tasks in a folder, with a file for the work of each lease."""

    store: FileStore  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def files(self) -> FileStore:
        """The folder of the files of work."""
        return self.store

    def collect(self) -> FileStore:
        """Returns the folder that holds the records of all tasks, once they are complete."""
        return self.files

    def work_path(self, lease: Lease) -> pathlib.Path:
        """Returns the file in which this worker works on a task."""
        name = f"{lease.number:06d}.{lease.epoch}.{self.worker}.work"
        return self.files.path(self.name) / name

    def earlier_work(self, lease: Lease) -> list[pathlib.Path]:
        """Returns the files of workers that had the task before, the largest first."""
        if lease.epoch == 1:
            return []
        return _work_files(self.files.path(self.name)).get(lease.number, [])

    def record_work(self, lease: Lease) -> bool:
        """Records the complete file of a lease; returns whether it counts.

        Raises:
          LeasesEnded: The results of all tasks were there already.
        """
        path = self.work_path(lease)
        first = self.record(lease, path)
        path.unlink(missing_ok=True)
        return first


def task_names(directory: pathlib.Path) -> list[str] | None:
    """Returns the names of the tasks of a list, None if its folder has none.

    Args:
      directory: The folder of the list.
    """
    try:
        names = parse_json((directory / TASKS).read_bytes())
    except (OSError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """The result of `join_records`.

    Attributes:
      tasks: The number of tasks in the list.
      joined: Tasks whose record was joined.
      resumed: Tasks without a record whose unfinished work was joined.
      before: Tasks without a record that the file had already.
      missing: All other tasks.
    """

    tasks: int
    joined: int
    resumed: int
    before: int
    missing: tuple[str, ...]


def join_records(
    path: pathlib.Path, store: FileStore, name: str, task_of: TaskOf, *, unfinished: bool = False
) -> Joined:
    """Writes the records of all tasks of a list into one file; it may be called again.

    Records replace the earlier lines of their tasks. The order of the lines depends on
    the list alone, not on the workers.

    Args:
      path: The file of JSON lines.
      store: The store of leases.
      name: The list.
      task_of: Returns the task of a record.
      unfinished: Whether the work on tasks without a record is joined as well, for a process that
        resumes alone.

    Raises:
      UserError: A record is damaged, or in the file of another task; names file and line.
      LeasesEnded: The store was removed.
    """
    names = task_names(store.path(name))
    if names is None:
        raise LeasesEnded(name)
    sources = {n: store.path(record_name(name, n)) for n in list_state(store, name).recorded}
    lines = _line_counts(path, task_of)
    resumed = 0
    if unfinished:
        for number, files in _work_files(store.path(name)).items():
            best = max(files, key=_num_lines)
            if number not in sources and _num_lines(best) > lines[names[number]]:
                sources[number], resumed = best, resumed + 1
    _write_joined(path, {names[n]: source for n, source in sorted(sources.items())}, task_of)
    without = [each for number, each in enumerate(names) if number not in sources]
    return Joined(
        tasks=len(names),
        joined=len(sources) - resumed,
        resumed=resumed,
        before=sum(each in lines for each in without),
        missing=tuple(each for each in without if each not in lines),
    )


def _write_joined(path: pathlib.Path, sources: Mapping[str, pathlib.Path], task_of: TaskOf) -> None:
    if not sources:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    merged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with merged.open("wb") as file:
            if path.exists():
                for record, line in sound_lines(path):
                    if task_of(record) not in sources:
                        file.write(line)
            for task, source in sources.items():
                for number, (record, line) in enumerate(sound_lines(source), start=1):
                    if task_of(record) != task:
                        raise UserError(
                            f"{source}, line {number}: a record of task "
                            f"{printable(task_of(record))} in the file of task {printable(task)}; "
                            "delete the file to run the task again"
                        )
                    file.write(line)
            file.flush()
            os.fsync(file.fileno())
        merged.replace(path)
    except FileNotFoundError as error:
        if any(source.parent.is_dir() for source in sources.values()):
            raise
        # Another process has joined them, and ended the stage.
        raise LeasesEnded(str(error.filename)) from None
    finally:
        merged.unlink(missing_ok=True)


def _line_counts(path: pathlib.Path, task_of: TaskOf) -> collections.Counter[str]:
    """The number of lines of each task in a file."""
    counts: collections.Counter[str] = collections.Counter()
    if path.exists():
        counts.update(task_of(record) for record, _ in sound_lines(path))
    return counts


def _num_lines(path: pathlib.Path) -> int:
    """The number of lines of unfinished work; 0 if a host that crashed left it damaged."""
    try:
        return sum(1 for _ in sound_lines(path))
    except (UserError, FileNotFoundError):
        return 0


def _work_files(directory: pathlib.Path) -> dict[int, list[pathlib.Path]]:
    """The files of work by number of the task, the largest first."""
    found: dict[int, list[tuple[int, pathlib.Path]]] = {}
    for path in directory.glob("*.work"):
        if match := _WORK.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                found.setdefault(int(match[1]), []).append((size, path))
    return {
        number: [path for _, path in sorted(files, key=lambda each: (-each[0], each[1].name))]
        for number, files in found.items()
    }
