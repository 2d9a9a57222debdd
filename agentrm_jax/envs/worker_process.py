"""A worker as seen by its parent: starts it, exchanges messages, detects a hang or its death."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs.episodes import Answer, Request, answer_from_json, request_to_json
from agentrm_jax.envs.given import Location

_START_SECONDS = 60.0
_MOST_ANSWER = 32 << 20
"""Most bytes of an answer: an observation of the longest text that is admitted takes 12 MB."""
_MOST_ERRORS = 4 << 20
"""Bytes that a worker may write to stderr before what it wrote is thrown away."""
_LOOK_SECONDS = 0.25
"""Seconds between two looks at the size of what workers write to stderr."""


class WorkerProcess:
    """One worker, started when it is first used and again after it was lost.

    Args:
      step_seconds: Seconds that a reset or an action may take.
      memory_bytes: Address space of the process.
      classes: Locations of the environments that are given as classes, by name.

    Attributes:
      answers: To the latest requests, in their order; fewer if the worker was lost.
      lost: The reason why the worker was lost during the latest requests, or None.
      incarnation: Counts losses. Episodes live in one incarnation only.
    """

    def __init__(
        self, step_seconds: float, memory_bytes: int, classes: Mapping[str, Location] | None = None
    ) -> None:
        located = {name: dataclasses.asdict(place) for name, place in (classes or {}).items()}
        self._classes = json.dumps(located)
        self.answers: list[Answer] = []
        self.lost: str | None = None
        self.incarnation = 0
        self._step_seconds = step_seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._expected = 0

    @property
    def waiting(self) -> bool:
        """Whether answers are still to come."""
        return self.lost is None and len(self.answers) < self._expected

    @property
    def connection(self) -> socket.socket:
        return self._connection

    def start(self) -> None:
        """Starts the process if none runs, without waiting for it."""
        if self._process is not None:
            return
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(_START_SECONDS)
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by stop
        # Appended, so that the file may be emptied while the worker writes.
        fcntl.fcntl(self._errors, fcntl.F_SETFL, os.O_APPEND)
        self._ready, self._number = False, 0
        arguments = (str(theirs.fileno()), str(self._memory_bytes), self._classes)
        with theirs:
            self._process = subprocess.Popen(
                # -P: modules are not imported from the current folder.
                [sys.executable, "-P", "-m", "agentrm_jax.envs.worker", *arguments],
                stdin=subprocess.PIPE,  # closes when this process dies: see worker._die_with_parent
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=_environment_variables(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        self._end = weakref.finalize(self, _end, self._process, self._connection, os.getpid())

    def send(self, released: Sequence[int], requests: Sequence[Request]) -> None:
        """Sends one message; the answers are then read.

        Raises:
          UserError: The worker cannot be started.
        """
        self.answers, self.lost, self._expected = [], None, len(requests)
        self._await_start()
        message = json.dumps([list(released), [request_to_json(r) for r in requests]])
        self._deadline = time.monotonic() + self._step_seconds
        if self._buffer or wait([self._connection], 0):
            self.read()  # it has ended, or sent bytes that nobody asked for
            self._lose(self.lost or "the worker sent something that nobody asked for")
            self.answers = []
            return
        try:
            self._connection.sendall(message.encode() + b"\n")
        except OSError:
            self._lose(self._death())

    def read(self) -> None:
        """Reads the answers that have arrived; to be called when there are some, or at the end."""
        with contextlib.suppress(OSError):
            if data := self._connection.recv(1 << 16):
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                self._take(lines)
                return
        self._lose(self._death())

    def _take(self, lines: Sequence[bytes]) -> None:
        """Reads answers; the worker is lost if something else, or too much, was sent."""
        try:
            for line in lines:
                match parse_json(line):
                    case [int(number), answer] if number == self._number and self.waiting:
                        self.answers.append(answer_from_json(answer))
                    case _:
                        raise ValueError("it has another form, or another number")
                self._number += 1
                self._deadline = time.monotonic() + self._step_seconds
            if len(self._buffer) > _MOST_ANSWER:
                raise ValueError(f"more than {_MOST_ANSWER:,} bytes")
        except ValueError as error:
            del self.answers[self._expected - 1 :]  # the last request is blamed for what follows it
            self._lose(f"the worker sent something that is no answer ({first_line(error)})")

    def trim_errors(self) -> None:
        """Throws away what the worker wrote to stderr if it is much: the disk would fill."""
        if self._process is not None and os.fstat(self._errors.fileno()).st_size > _MOST_ERRORS:
            os.ftruncate(self._errors.fileno(), 0)

    def seconds_left(self) -> float:
        """Returns the seconds until the next answer is overdue."""
        return self._deadline - time.monotonic()

    def give_up(self) -> None:
        """Kills a worker whose answer is overdue."""
        self._lose(f"no answer within {self._step_seconds:g} s")

    def stop(self) -> None:
        """Ends the process. It starts again if it is used again."""
        if self._process is not None:
            self._end()
            self._errors.close()
            self._process = None
            self.incarnation += 1

    def _await_start(self) -> None:
        self.start()
        if self._ready:
            return
        with contextlib.suppress(OSError):
            self._ready = self._connection.recv(1) == b"\n"
        if not self._ready:
            reason = self._death()
            self.stop()
            raise UserError(f"a worker for environments cannot start: {reason}")

    def _lose(self, reason: str) -> None:
        self.stop()
        self.lost = reason

    def _death(self) -> str:
        """Returns how the process ended, with the last line that it wrote."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its connection"
        if code < 0:
            return f"the worker died of {signal.Signals(-code).name}"
        size = os.fstat(self._errors.fileno()).st_size
        self._errors.seek(max(0, size - 10_000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = printable(last[:300])
        return f"the worker exited with status {code}" + (f": {said}" if said else "")


def read_answers(workers: Sequence[WorkerProcess]) -> None:
    """Reads until every worker has answered all requests or is lost."""
    while busy := [worker for worker in workers if worker.waiting]:
        patience = min(worker.seconds_left() for worker in busy)
        timeout = min(max(patience, 0.0), _LOOK_SECONDS)
        ready = wait([worker.connection for worker in busy], timeout=timeout)
        for worker in busy:
            if worker.connection in ready:
                worker.read()
        for worker in busy:
            if worker.waiting and worker.seconds_left() <= 0:
                worker.give_up()
            worker.trim_errors()


def _environment_variables() -> dict[str, str]:
    """Returns this process's variables, with its module path, one thread and fixed hashes."""
    defaults = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return defaults | dict(os.environ) | {"PYTHONPATH": path}


def _end(process: subprocess.Popen[bytes], connection: socket.socket, owner: int) -> None:
    """Kills the process and its children. Also runs when the interpreter exits."""
    connection.close()
    if os.getpid() != owner:  # a fork of the owner exits: the worker is not its to kill
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5.0)
    if process.stdin is not None:
        process.stdin.close()
