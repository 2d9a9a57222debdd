"""Progress on stderr: a bar with the time left on a terminal, else a plain line now and then.

`AGENTRM_PROGRESS=0` turns it off.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

LINE_SECONDS = 10.0
"""Without a terminal at most one line is written in this time."""


class Progress(Protocol):
    """A progress bar of a loop."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Advances the bar.

        Args:
          n: Number of items that were done since the last call.
          fields: Values that are shown next to the bar until they change, such as a loss.
        """
        ...


@contextlib.contextmanager
def progress(
    description: str, total: int | None, *, done: int = 0, shown: bool = True
) -> Iterator[Progress]:
    """Shows how far a loop is while the `with` block runs.

    Args:
      description: What is counted, for example `explore`.
      total: How many there are; None if that is not known.
      done: How many were done before, by a run that was interrupted. The time left is estimated
        from what this run does.
      shown: Whether anything is shown: one of several processes does.
    """
    if not shown or os.environ.get("AGENTRM_PROGRESS") == "0":
        yield _Silent()
    elif sys.stderr.isatty():
        with _bar(description, total, done) as bar:
            yield bar
    else:
        lines = Lines(description, total, done=done)
        yield lines
        lines.close()


@contextlib.contextmanager
def waiting(
    description: str, *, shown: bool = True, seconds: float = LINE_SECONDS
) -> Iterator[None]:
    """Shows that one long step, such as compilation, is still at work while the `with` block runs.

    Args:
      description: The step.
      shown: Whether anything is shown: one of several processes does.
      seconds: The time between two lines, if there is no terminal.
    """
    if not shown or os.environ.get("AGENTRM_PROGRESS") == "0":
        yield
    elif sys.stderr.isatty():
        with _spinner(description):
            yield
    else:
        start, ended = time.monotonic(), threading.Event()

        def write() -> None:
            while not ended.wait(seconds):
                passed = _clock_time(time.monotonic() - start)
                print(f"{description}: {passed}", file=sys.stderr, flush=True)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join()


class Lines:
    """Progress as plain lines, for logs."""

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._clock = description, total, clock
        self._before = self._done = self._written = done
        self._start = self._last = clock()
        self._fields: dict[str, object] = {}

    def advance(self, n: int = 1, **fields: object) -> None:
        self._done += n
        self._fields.update(fields)
        if self._clock() - self._last >= LINE_SECONDS:
            self._write()

    def close(self) -> None:
        """Writes how it ended, where the last line does not say so already."""
        if self._done > self._written:
            self._write()

    def _write(self) -> None:
        now = self._clock()
        self._last, self._written = now, self._done
        seconds, new = now - self._start, self._done - self._before
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        parts = [f"{self._description}: {count}", _clock_time(seconds)]
        if self._total is not None and new > 0 and self._done < self._total:
            parts.append(f"{_clock_time(seconds / new * (self._total - self._done))} left")
        print(", ".join([*parts, *_shown(self._fields)]), file=sys.stderr, flush=True)


class _Silent:
    def advance(self, n: int = 1, **fields: object) -> None:
        pass


@contextlib.contextmanager
def _bar(description: str, total: int | None, done: int) -> Iterator[Progress]:
    # rich takes a moment to import, and only a terminal needs it.
    from rich import progress as rich_progress
    from rich.console import Console

    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description:<10}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("ETA"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[shown]}"),
        console=Console(stderr=True),
    ) as bars:
        task = bars.add_task(description, total=total, completed=done, shown="")

        class Bar:
            def __init__(self) -> None:
                self._fields: dict[str, object] = {}

            def advance(self, n: int = 1, **fields: object) -> None:
                self._fields.update(fields)
                bars.update(task, advance=n, shown=" ".join(_shown(self._fields)))

        yield Bar()


@contextlib.contextmanager
def _spinner(description: str) -> Iterator[None]:
    from rich import progress as rich_progress
    from rich.console import Console

    with rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}"),
        rich_progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        bars.add_task(description, total=None)
        yield


def _shown(fields: dict[str, object]) -> list[str]:
    return [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in fields.items()
    ]


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
