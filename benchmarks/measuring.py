"""Tools of all benchmarks: interleaved rounds, wall-clock and CPU-seconds, the machine's name.

On a shared machine, other processes disturb wall-clock seconds more than CPU-seconds (the sum over
all threads of this process). Both are reported, as medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from agentrm_jax.runtime.allocator import keep_freed_memory

keep_freed_memory()  # as `agentrm` does


@dataclasses.dataclass(frozen=True, slots=True)
class Seconds:
    wall: float
    cpu: float


class Clock:
    """Measures the seconds since its creation."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> Seconds:
        return Seconds(time.monotonic() - self._wall, time.process_time() - self._cpu)


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """The times of one side of a comparison: its first call, which compiles, and its rounds."""

    first: Seconds
    rounds: Sequence[Seconds]

    @property
    def median(self) -> Seconds:
        return Seconds(
            statistics.median(r.wall for r in self.rounds),
            statistics.median(r.cpu for r in self.rounds),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "wall": self.median.wall,
            "cpu": self.median.cpu,
            "rounds": [dataclasses.asdict(seconds) for seconds in self.rounds],
            "first_wall": self.first.wall,
        }


def interleaved(sides: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, Side]:
    """Calls all sides in turn, in reverse order in every second round.

    Args:
      sides: Functions by name. Each call gets a new number and returns when its work is done.
      rounds: Timed calls of every side after the first.
    """
    first, found = {}, {name: [] for name in sides}
    for name, call in sides.items():
        clock = Clock()
        call(0)
        first[name] = clock.read()
    for number in range(1, rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            clock = Clock()
            sides[name](number)
            found[name].append(clock.read())
    return {name: Side(first[name], found[name]) for name in sides}


def parser(
    name: str, description: str | None, *, rounds: int, threads: int = 1
) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks share."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--tiny", action="store_true", help="a tiny model and sizes: a few seconds")
    made.add_argument("--rounds", type=int, default=rounds, help="timed calls of every side")
    made.add_argument(
        "--threads",
        type=int,
        default=threads,
        help="CPU threads of JAX and of torch; 0: all cores. Threads that wait for work use "
        f"CPU-seconds, too; compare CPU-seconds with one thread (default: {threads})",
    )
    return made


def use_threads(threads: int) -> int:
    """Sets the number of JAX's CPU threads; call it before anything uses a JAX device."""
    threads = threads or len(os.sched_getaffinity(0))
    os.environ["NPROC"] = str(threads)  # XLA reads the size of its pool here
    return threads


def hardware(threads: int) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(title: str, sides: Mapping[str, Side]) -> None:
    """Prints one line for each side."""
    print(title)
    width = max(map(len, sides))
    for name, side in sides.items():
        median = side.median
        print(
            f"  {name:{width}}  CPU {median.cpu:8.3f} s  wall {median.wall:8.3f} s"
            f"  (first call {side.first.wall:.1f} s)"
        )


def finish(benchmark: str, found: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Prints the results as one line of JSON, the last line of the output."""
    print(json.dumps(record(benchmark, found, threads)), flush=True)
    return {"benchmark": benchmark, **found, "hardware": hardware(threads)}


def record(benchmark: str, found: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Returns the results with the machine's description, numbers rounded to five digits."""
    return _rounded({"benchmark": benchmark, **found, "hardware": hardware(threads)})


def _rounded(value: Any) -> Any:
    """Rounds all numbers to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(inner) for inner in value]
    return value
