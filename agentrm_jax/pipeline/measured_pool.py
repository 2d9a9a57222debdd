"""An environment pool that counts its steps and the seconds in which the caller waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from agentrm_jax.core.protocols import EnvironmentFailure, EnvironmentPool
from agentrm_jax.core.records import Task, Transition


class MeasuredPool:
    """Hands everything to another pool.

    Args:
      pool: The other pool.

    Attributes:
      steps: Actions that were asked for.
      seconds: Seconds in which the caller waited for environments.
    """

    def __init__(self, pool: EnvironmentPool) -> None:
        self._pool = pool
        self.steps, self.seconds = 0, 0.0

    def reset(self, tasks: Sequence[Task]) -> list[tuple[int, str] | EnvironmentFailure]:
        with self._timed():
            return self._pool.reset(tasks)

    def branch(
        self, requests: Sequence[tuple[int, str]]
    ) -> list[tuple[int, Transition] | EnvironmentFailure]:
        self.steps += len(requests)
        with self._timed():
            return self._pool.branch(requests)

    def step(self, requests: Sequence[tuple[int, str]]) -> list[Transition | EnvironmentFailure]:
        self.steps += len(requests)
        with self._timed():
            return self._pool.step(requests)

    def release(self, handles: Sequence[int]) -> None:
        with self._timed():
            self._pool.release(handles)

    def action_key(self, task: Task, action: str) -> str:
        return self._pool.action_key(task, action)

    def elsewhere(self, task: Task) -> bool:
        return self._pool.elsewhere(task)

    def close(self) -> None:
        self._pool.close()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
