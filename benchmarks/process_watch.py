"""Samples of memory, descriptors and children of processes, from /proc, and their slopes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Sequence

_PAGE = os.sysconf("SC_PAGE_SIZE")
PROC = pathlib.Path("/proc")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One look at a process.

    Attributes:
      seconds: Seconds since the watch began.
      resident: Resident memory in bytes.
      descriptors: Open descriptors.
      threads: Its threads.
    """

    seconds: float
    resident: int
    descriptors: int
    threads: int


class ProcessWatch:
    """Samples of a process and of all its descendants, by process number.

    Attributes:
      samples: The samples of each process, in order.
      names: The command of each process, shortened.
    """

    def __init__(self, root: int) -> None:
        self._root, self._began = root, time.monotonic()
        self.samples: dict[int, list[Sample]] = {}
        self.names: dict[int, str] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._began

    def look(self) -> None:
        """Takes a sample of each process."""
        for pid in [self._root, *descendants(self._root)]:
            try:
                resident = int((PROC / f"{pid}/statm").read_text().split()[1]) * _PAGE
                descriptors = len(os.listdir(PROC / f"{pid}/fd"))
                threads = len(os.listdir(PROC / f"{pid}/task"))
                self.names.setdefault(pid, _name(pid))
            except OSError:  # it has ended
                continue
            sample = Sample(
                seconds=self.seconds, resident=resident, descriptors=descriptors, threads=threads
            )
            self.samples.setdefault(pid, []).append(sample)


def descendants(root: int) -> list[int]:
    """Returns the processes below a process."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _name(pid: int) -> str:
    words = (PROC / f"{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    named = [word for word in words if "agentrm" in word and not word.startswith("/")]
    return named[0] if named else pathlib.Path(words[0]).name


def slope_per_hour(points: Sequence[tuple[float, float]]) -> float:
    """Returns the slope of a line through points by the median of pairwise slopes (Theil-Sen).

    Args:
      points: Seconds and values; of many, about a hundred at equal distances are taken.

    Returns:
      The change of the value in an hour; 0 with fewer than two points.
    """
    points = points[:: max(1, len(points) // 100)]
    slopes = [
        (b - a) / (t - s) for i, (s, a) in enumerate(points) for t, b in points[i + 1 :] if t > s
    ]
    return 3600 * statistics.median(slopes) if slopes else 0.0
