"""Counts what JAX compiles."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(slots=True)
class Compilations:
    """Programs handed to the compiler, or read from the compilation cache, and their seconds."""

    count: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts the compilations while the `with` block runs."""
    import jax.monitoring

    counted, listening = Compilations(), True

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if listening and event == _EVENT:
            counted.count += 1
            counted.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        listening = False  # public JAX cannot take a listener away again
