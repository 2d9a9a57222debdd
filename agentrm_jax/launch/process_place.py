"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from agentrm_jax.launch.workers import Team


def with_parent() -> Callable[[], None] | None:
    """Returns a function for a new process: it gets SIGTERM when its parent dies; Linux alone."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


class ProcessPlace:
    """Starts each worker as a process; with GPUs, each sees its own.

    Args:
      team: The workers.
    """

    def __init__(self, team: Team) -> None:
        self._gpus = team.gpus
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def address(self) -> str:
        return f"127.0.0.1:{free_port()}"

    def start(self, number: int, command: Sequence[str]) -> None:
        environment = dict(os.environ)
        if self._gpus:
            own = range(number * self._gpus, (number + 1) * self._gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        # A session of its own: Ctrl-C reaches it once, through `stop`.
        self._processes[number] = subprocess.Popen(
            command, env=environment, start_new_session=True, preexec_fn=with_parent()
        )

    def ended(self, seconds: float) -> dict[int, int]:
        deadline = time.monotonic() + seconds
        while True:
            ended = {
                number: status
                for number, process in self._processes.items()
                if (status := process.poll()) is not None
            }
            if ended or time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        for number in ended:
            del self._processes[number]
        return ended

    def stop(self, number: int) -> None:
        with contextlib.suppress(KeyError):
            self._processes[number].send_signal(signal.SIGTERM)

    def kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def close(self) -> None:
        for number in tuple(self._processes):
            self.kill(number)


def open_place(team: Team) -> ProcessPlace:
    """Returns the place."""
    return ProcessPlace(team)
