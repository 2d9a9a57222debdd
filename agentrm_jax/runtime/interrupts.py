"""Ctrl-C and SIGTERM at moments at which Python cannot raise KeyboardInterrupt safely."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from agentrm_jax.core.errors import Stopped

_UNSAFE = ("<frozen importlib", "/jax/_src/xla_bridge.py")
_AGAIN_SECONDS = 0.1
_MOST_DELAYS = 100


class Interrupts:
    """Ctrl-C, or another signal that is to end a command as Ctrl-C does.

    Args:
      outside: Frames from this one on do not count.
      number: The signal.

    Attributes:
      asked: Whether the signal came. A library may have replaced KeyboardInterrupt by another
        error.
    """

    def __init__(self, outside: FrameType, number: int = signal.SIGINT) -> None:
        self.asked = False
        self._number = number
        self._outside, self._delays = outside, 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal: raises KeyboardInterrupt, now or as soon as it is safe."""
        self.asked = True
        if self._delays < _MOST_DELAYS and self._unsafe(frame):
            self._delays += 1
            self.again()
        else:
            raise KeyboardInterrupt

    def again(self) -> None:
        """Interrupts the main thread again after a short delay, if the signal came."""
        if self.asked:
            timer = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main, (self._number,))
            timer.daemon = True
            timer.start()

    def _unsafe(self, frame: FrameType | None) -> bool:
        while frame is not None and frame is not self._outside:
            file = frame.f_code.co_filename
            if file.startswith(_UNSAFE[0]) or file.endswith(_UNSAFE[1]):
                return True
            frame = frame.f_back
        return False


@contextlib.contextmanager
def handled_interrupts() -> Iterator[Interrupts]:
    """Raises KeyboardInterrupt for Ctrl-C, but not while a module is imported or JAX starts.

    An extension whose import is interrupted may end the process with a signal, or replace the
    exception; JAX leaves a timer that delays the end of the process by a minute. KeyboardInterrupt
    is raised as soon as the import or the start has ended. Frames outside the block do not count.
    """
    interrupts = Interrupts(sys._getframe(2))  # the caller of the block, above `contextlib`
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Ends the block as Ctrl-C does when SIGTERM comes, for work that can be resumed.

    Outside of the main thread, or if something else handles SIGTERM, nothing changes.

    Raises:
      Stopped: SIGTERM has ended the block.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    asked = Interrupts(sys._getframe(2), signal.SIGTERM)
    signal.signal(signal.SIGTERM, asked.handle)
    try:
        yield
    except BaseException as error:
        if asked.asked and not isinstance(error, Stopped):
            raise Stopped("stopped by SIGTERM") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
