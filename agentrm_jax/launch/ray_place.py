"""Workers that are Ray actors, each of which runs the worker command as a process.

Ray chooses the hosts. An actor that dies takes its process with it; the leases of that process
expire, and a new actor starts the same command. Nothing of a run passes through Ray.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line
from agentrm_jax.launch.process_place import free_port, with_parent
from agentrm_jax.launch.workers import Team

_DIED = -int(signal.SIGKILL)


class Worker:
    """The actor: it runs the worker command."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Returns a free address of its host."""
        import ray

        return f"{ray.util.get_node_ip_address()}:{free_port()}"

    def run(self, command: Sequence[str], folder: str) -> int:
        """Runs the command in a folder, if there is one of that name; returns its exit status."""
        cwd = folder if os.path.isdir(folder) else None
        self._process = subprocess.Popen(command, cwd=cwd, preexec_fn=with_parent())
        return self._process.wait()

    def stop(self) -> None:
        """Sends SIGTERM to the command."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


class RayPlace:
    """Starts each worker in an actor of its own.

    Args:
      team: The workers.

    Raises:
      UserError: Ray is not installed, or cannot be started or reached.
    """

    def __init__(self, team: Team) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("ray is missing: pip install 'agentrm-jax[ray]'") from None
        self._ray: Any = ray
        try:
            ray.init(ignore_reinit_error=True, log_to_driver=True)
        except Exception as error:  # Ray raises many kinds
            raise UserError(
                f"Ray could not be started or reached ({first_line(error)}); `ray status` says "
                "more, and RAY_ADDRESS names another cluster"
            ) from error
        options = {"num_gpus": team.gpus, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
        self._kind = ray.remote(Worker).options(**options)
        self._actors: dict[int, Any] = {}
        self._results: dict[int, Any] = {}

    def address(self) -> str:
        return self._ray.get(self._actor(0).address.remote())

    def _actor(self, number: int) -> Any:
        if number not in self._actors:
            self._actors[number] = self._kind.remote()
        return self._actors[number]

    def start(self, number: int, command: Sequence[str]) -> None:
        result = self._actor(number).run.remote(list(command), os.getcwd())
        self._results[number] = result

    def ended(self, seconds: float) -> dict[int, int]:
        numbers = {result: number for number, result in self._results.items()}
        if not numbers:
            time.sleep(seconds)
            return {}
        done, _ = self._ray.wait(list(numbers), num_returns=1, timeout=seconds)
        return {numbers[result]: self._status(numbers[result]) for result in done}

    def _status(self, number: int) -> int:
        """The exit status of a worker that ended; its actor ends as well."""
        try:
            status = self._ray.get(self._results.pop(number))
        except self._ray.exceptions.RayError:  # the actor or its host died
            status = _DIED
        self._end(number)
        return status

    def _end(self, number: int) -> None:
        actor = self._actors.pop(number, None)
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def stop(self, number: int) -> None:
        if number in self._actors:
            self._actors[number].stop.remote()

    def kill(self, number: int) -> None:
        self._results.pop(number, None)
        self._end(number)

    def close(self) -> None:
        for number in tuple(self._actors):
            self.kill(number)
        self._ray.shutdown()


def open_place(team: Team) -> RayPlace:
    """Returns the place.

    Raises:
      UserError: Ray is not installed, or cannot be started or reached.
    """
    return RayPlace(team)
