"""One thread that owns a model: all waiting requests are answered in one call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from agentrm_jax.serve.errors import RequestRefused

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BatchThread(Generic[Item, Answer]):
    """Calls a function with all waiting items, in a thread of its own.

    An item whose future is cancelled while it waits is left out.

    Args:
      work: Takes items and returns an answer or an exception for each. Only this thread calls it.
      name: Name of the thread.
      most_waiting: Most items that wait; more are refused.
      most_together: Most items of one call.

    Attributes:
      calls: The number of calls so far.
      answered: The number of items that were answered.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        *,
        name: str,
        most_waiting: int,
        most_together: int = 1024,
    ) -> None:
        self._work, self._most_waiting, self._most_together = work, most_waiting, most_together
        self._waiting: deque[tuple[Item, Future[Answer]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.calls = self.answered = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of items that wait for a call."""
        with self._changed:
            return sum(not future.cancelled() for _, future in self._waiting)

    def submit(self, items: Sequence[Item]) -> list[Future[Answer]]:
        """Queues items: all of them or none.

        Args:
          items: The items.

        Returns:
          The future answer of each item.

        Raises:
          RequestRefused: The queue is full (429), the items alone are more than it holds (400), or
            the thread was closed (503).
        """
        most = self._most_waiting
        if len(items) > most:
            raise RequestRefused(
                f"must ask for at most {most} answers at a time (got {len(items)})"
            )
        entries = [(item, Future[Answer]()) for item in items]
        with self._changed:
            if self._closed:
                raise RequestRefused("the server is stopping", 503)
            if len(self._waiting) + len(entries) > most:
                self._waiting = deque(e for e in self._waiting if not e[1].cancelled())
            if len(self._waiting) + len(entries) > most:
                raise RequestRefused(
                    f"{len(self._waiting)} requests wait already; try again later",
                    429,
                    {"Retry-After": "1"},
                )
            self._waiting.extend(entries)
            self._changed.notify()
        return [future for _, future in entries]

    def close(self) -> None:
        """Answers all waiting items, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                count = min(len(self._waiting), self._most_together)
                entries = [self._waiting.popleft() for _ in range(count)]
            running = [(i, f) for i, f in entries if f.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _answer(self, entries: Sequence[tuple[Item, Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = self._work([item for item, _ in entries])
        except Exception as error:  # the thread must survive; every request gets the reason
            answers = [error] * len(entries)
        self.calls += 1
        self.answered += len(entries)
        for (_, future), answer in zip(entries, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
