"""Starts the worker command several times, on this machine or in Ray actors, and again if it dies.

    python -m agentrm_jax.launch.workers --place=processes|ray --count=N [--joined] -- COMMAND ...

Processes with leases are restarted one by one; those that compute together all at once. Nothing of
the run is held here: if this program dies, its command resumes. Nothing imports JAX.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from agentrm_jax.core.errors import UserError

WRONG_INPUT = 2
"""Exit status of a command that would fail in the same way again."""

_GRACE_SECONDS = 120.0
_LONGEST_DELAY = 60.0
_SOUND_SECONDS = 600.0  # seconds after which a failure does not count with earlier ones


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """The workers.

    Attributes:
      command: The words of the worker command.
      count: Number of workers.
      gpus: GPUs of each.
      joined: Whether they compute together: they get an address to meet, and if one dies all are
        started again.
      restarts: Restarts of a worker, or of all that are joined, in a row.
    """

    command: tuple[str, ...]
    count: int
    gpus: int = 0
    joined: bool = False
    restarts: int = 10


class Place(Protocol):
    """A place that starts and ends workers; each worker has a number."""

    def address(self) -> str:
        """Returns HOST:PORT of worker 0, at which workers can meet."""
        ...

    def start(self, number: int, command: Sequence[str]) -> None:
        """Starts a worker."""
        ...

    def ended(self, seconds: float) -> dict[int, int]:
        """Returns the exit status of each worker that ended; waits up to `seconds` for one."""
        ...

    def stop(self, number: int) -> None:
        """Sends SIGTERM to a worker."""
        ...

    def kill(self, number: int) -> None:
        """Ends a worker at once."""
        ...

    def close(self) -> None:
        """Ends what is left."""
        ...


class Supervisor:
    """Runs a team in a place until its work has ended.

    Args:
      place: The place.
      team: The workers.
      say: Prints a line.
      clock: Monotonic seconds.
    """

    def __init__(
        self,
        place: Place,
        team: Team,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._team, self._say, self._clock = place, team, say, clock
        self._running: dict[int, float] = {}
        self._waiting: dict[int, float] = {}
        self._deaths = [0] * team.count
        self._stopping = False

    def stop(self) -> None:
        """Sends SIGTERM to all workers, and starts none again."""
        self._stopping = True
        self._waiting.clear()
        for number in tuple(self._running):
            self._place.stop(number)

    def run(self) -> int:
        """Returns the exit status: 0 if the work ended or was stopped, else that of a worker."""
        self._start_all()
        while self._running or self._waiting:
            now = self._clock()
            due = [number for number, when in self._waiting.items() if when <= now]
            if due and self._team.joined:
                self._start_all()
            for number in due if not self._team.joined else ():
                self._start(number, ())
            for number, status in self._place.ended(0.5).items():
                lived = self._clock() - self._running.pop(number)
                failed = status != 0 and not self._stopping
                if failed and (given_up := self._failed(number, status, lived)) is not None:
                    return given_up
        return 0

    def _failed(self, number: int, status: int, lived: float) -> int | None:
        """Restarts a worker that died; returns the exit status if it gives up."""
        self._say(f"launch: worker {number} ended with status {status}")
        if status == WRONG_INPUT:
            self._end_others()
            return status
        if lived > _SOUND_SECONDS:
            self._deaths[number] = 0
        self._deaths[number] += 1
        if self._team.joined:
            self._end_others()
            deaths = sum(self._deaths)
        else:
            deaths = self._deaths[number]
        if deaths > self._team.restarts:
            self._say(f"launch: gives up after {self._team.restarts} restarts")
            self._end_others()
            return status if status > 0 else 128 - status
        delay = min(_LONGEST_DELAY, 2.0 ** (deaths - 1))
        self._waiting[number] = self._clock() + delay
        return None

    def _start_all(self) -> None:
        self._waiting.clear()
        address = self._place.address() if self._team.joined and self._team.count > 1 else ""
        for number in range(self._team.count):
            joins = (
                f"--distributed.coordinator={address}",
                f"--distributed.num_processes={self._team.count}",
                f"--distributed.process_id={number}",
            )
            self._start(number, joins if address else ())

    def _start(self, number: int, joins: Sequence[str]) -> None:
        self._waiting.pop(number, None)
        if self._stopping:
            return
        self._place.start(number, (*self._team.command, *joins))
        self._running[number] = self._clock()
        if self._stopping:  # the signal came while it was started
            self._place.stop(number)

    def _end_others(self) -> None:
        """Ends the workers that run: with SIGTERM, and at once if that is not enough."""
        self._waiting.clear()
        for number in tuple(self._running):
            self._place.stop(number)
        deadline = self._clock() + _GRACE_SECONDS
        while self._running and self._clock() < deadline:
            for number in self._place.ended(0.5):
                self._running.pop(number)
        for number in tuple(self._running):
            self._place.kill(number)
            self._running.pop(number)


def _place(name: str, team: Team) -> Place:
    module = {"processes": "process_place", "ray": "ray_place"}[name]
    return importlib.import_module(f"agentrm_jax.launch.{module}").open_place(team)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a team; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, command = (
        (words[: words.index("--")], words[words.index("--") + 1 :])
        if "--" in words
        else (words, [])
    )
    parser = argparse.ArgumentParser(prog="python -m agentrm_jax.launch.workers")
    parser.add_argument("--place", choices=("processes", "ray"), required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--joined", action="store_true")
    given = parser.parse_args(own)
    if not command:
        parser.error("the worker command is missing: -- COMMAND ...")
    team = Team(
        command=tuple(command),
        count=given.count,
        gpus=given.gpus,
        joined=given.joined,
        restarts=given.restarts,
    )
    try:
        place = _place(given.place, team)
    except UserError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return WRONG_INPUT
    supervisor = Supervisor(place, team)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    try:
        return supervisor.run()
    finally:
        place.close()


if __name__ == "__main__":
    sys.exit(main())
