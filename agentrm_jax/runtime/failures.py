"""The end of a command that fails: one line for the user, the traceback in a file."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import logging
import os
import pathlib
import re
import select
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentrm_jax.core.errors import Stopped, UserError
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.runtime.run_directory import ERRORS, RESOLVED

_MOST_NOISE = 1_000_000  # characters
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


def open_standard_streams() -> None:
    """Makes stdin, stdout and stderr usable if the caller closed some of them.

    A closed stream becomes the null device. Otherwise the next file that is opened would get its
    number, and printed text would go into that file. Characters that the terminal's encoding lacks
    are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Noise:
    """Reports of threads and libraries while a command runs; they go into the traceback's file.

    Threads of Orbax and TensorFlow Datasets each print a traceback before the command itself fails
    for the same reason.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._hidden: list[str] = []

    @property
    def text(self) -> str:
        """All reports."""
        return "\n".join(self._parts)

    def add(self, text: str, summary: str = "") -> None:
        """Keeps a report.

        Args:
          text: The report.
          summary: One line of it, if nothing was printed yet.
        """
        if self._size < _MOST_NOISE:
            self._parts.append(text)
            self._size += len(text)
            if summary:
                self._hidden.append(summary)

    def silence(self) -> None:
        """Suppresses what libraries report at exit about the error that ended the command."""
        logging.getLogger().addHandler(logging.NullHandler())

    def show_hidden(self) -> None:
        """Prints one line of each report that was not printed yet; for commands that succeed."""
        for line in self._hidden:
            print(f"agentrm: warning: {printable(line)}", file=sys.stderr)


@contextlib.contextmanager
def collected_noise(on_interrupt: Callable[[], None]) -> Iterator[Noise]:
    """Collects tracebacks of threads, and errors that libraries log, while the block runs.

    Args:
      on_interrupt: Called if KeyboardInterrupt is raised in a callback, where Python ignores it.
    """
    noise = Noise()
    hooks = threading.excepthook, sys.unraisablehook
    handler = _Handler(noise)
    root = logging.getLogger()

    def on_failure(failure: Any) -> None:
        if failure.exc_type is KeyboardInterrupt:
            on_interrupt()
        elif failure.exc_type is not SystemExit:
            where = getattr(failure, "thread", None) or getattr(failure, "err_msg", None)
            error = (failure.exc_type, failure.exc_value, failure.exc_traceback)
            text = "".join(traceback.format_exception(*error))
            noise.add(f"{where}:\n{text}", f"{where}: {text.strip().splitlines()[-1]}")

    threading.excepthook = sys.unraisablehook = on_failure
    root.addHandler(handler)
    try:
        yield noise
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        root.removeHandler(handler)


class _Handler(logging.Handler):
    """Prints warnings of libraries as one line each; keeps tracebacks for the file."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(logging.WARNING)
        self._noise = noise

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # the library's message does not fit its arguments
            text = f"{record.msg!r} ({error!r})"
        text = f"{record.levelname}:{record.name}:{text}"
        line = text.partition("\n")[0]
        if record.exc_info:
            self._noise.add(text, line)
        else:
            self._noise.add(text)
            print(printable(line), file=sys.stderr)


def ended(
    error: BaseException, arguments: Sequence[str], *, debug: bool = False, noise: str = ""
) -> int:
    """Prints the line that ends a command; returns its exit status.

    Args:
      error: The exception that the command raised.
      arguments: The command line, which names the folder of the run.
      debug: Whether to print the traceback as well.
      noise: Other reports, which go into the traceback's file.
    """
    if debug:
        traceback.print_exception(error)
    if isinstance(error, Stopped):
        return _say(f"{error}; {error.resume}", 0)
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted; run the same command again to resume", 130)
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return 141  # as a shell reports SIGPIPE
    if isinstance(error, UserError):
        return _say(f"error: {error}", 2)
    if (file := _full(error, arguments)) is not None:
        return _say(
            f"error: {file}: no space left on the disk; free some, then run the same command again",
            2,
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return _say(f"error: {error.filename}: {error.strerror}", 2)
    hint = (
        "out of memory; smaller sizes need less (engine.cache_tokens, *.fit.batch_size, "
        "*.fit.length, evaluate.n): "
        if _is_out_of_memory(error)
        else ""
    )
    where = _store_traceback(error, noise, arguments)
    return _say(f"error: {hint}{type(error).__name__}: {_first_line(error)}; {where}", 1)


def _say(line: str, status: int) -> int:
    print(f"agentrm: {printable(line)}", file=sys.stderr, flush=True)
    return status


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe without a reader; if so, it is replaced by the null device."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced, or closed
        return False
    waiting = select.poll()
    waiting.register(number, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in waiting.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


def _stdout_is_full() -> bool:
    """Whether stdout is on a full disk; if so, it is replaced by the null device."""
    try:
        number = sys.stdout.fileno()
        os.write(number, b"\n")
    except OSError as error:
        if error.errno in _FULL:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            return True
    except ValueError:  # a closed stream
        return False
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and the errors of its groups."""
    remaining, seen = [error], set()
    while remaining:
        current = remaining.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            remaining += [e for e in (current.__cause__, current.__context__) if e is not None]
            remaining += getattr(current, "exceptions", ())


def _full(error: BaseException, arguments: Sequence[str]) -> str | None:
    """The file that could not be written because the disk is full, None for other errors."""
    full = [each for each in _chain(error) if _is_full(each)]
    for each in full:
        named = re.search(r"""["'](/[^"']+)["']""", _text(each))
        if file := getattr(each, "filename", None) or (named and named[1]):
            return str(file)
    if not full:
        return None
    return "standard output" if _stdout_is_full() else str(_output(arguments) or "output")


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(phrase in _text(error) for phrase in _FULL_TEXTS)


def _is_out_of_memory(error: BaseException) -> bool:
    text = _text(error)
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the class of the error is a user's own, whose __str__ fails
        return ""


def _first_line(error: BaseException) -> str:
    return first_line(error) if _text(error) else "no message"


def _output(arguments: Sequence[str]) -> pathlib.Path | None:
    """The folder or file that the command line names for the output."""
    for word, following in itertools.pairwise([*arguments, ""]):
        if word == "--output" and following:
            return pathlib.Path(following)
        if word.startswith("--output="):
            return pathlib.Path(word.partition("=")[2])
    return None


def _store_traceback(error: BaseException, noise: str, arguments: Sequence[str]) -> str:
    """Writes the traceback; returns the part of the message that names its file."""
    text = "".join(traceback.format_exception(error))
    if noise:
        text += f"\nReported before by threads and libraries:\n{noise}\n"
    run = _output(arguments)
    name = f"{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.{os.getpid()}.txt"
    folders = [run / ERRORS] if run is not None and (run / RESOLVED).is_file() else []
    for folder in (*folders, None):
        try:
            if folder is None:
                number, file = tempfile.mkstemp(prefix="agentrm-error-", suffix=".txt", text=True)
                os.close(number)
                path = pathlib.Path(file)
            else:
                folder.mkdir(exist_ok=True)
                path = folder / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return f"the traceback is in {path}; --debug shows it"
    return "--debug shows the traceback"
