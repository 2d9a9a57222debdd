"""Early stops of training: after SIGTERM, or when its time is over."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Stopping:
    """Records SIGTERM or the end of the time, so that a checkpoint is saved.

    Several processes must stop at the same update. In every update each process sends the others
    whether it is to stop, and reads one update later what they sent: nothing waits for it.

    Args:
      mesh: The devices of all processes.
      stop_at: `time.monotonic()` at which the time is over.
    """

    def __init__(self, mesh: Mesh, stop_at: float) -> None:
        self._stop_at = stop_at
        self._signalled_at: float | None = None
        self._sent = None
        self._one_per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def agreed(self) -> bool:
        """Returns whether to stop now; all processes call it in every update."""
        asked = self._signalled_at is not None or time.monotonic() >= self._stop_at
        if jax.process_count() == 1:
            return asked
        sent_before = self._sent
        signalled = np.full(self._one_per_device.mesh.size, asked)
        self._sent = self._any(
            jax.make_array_from_callback(
                signalled.shape, self._one_per_device, lambda index: signalled[index]
            )
        )
        return sent_before is not None and bool(sent_before)

    def __enter__(self) -> Stopping:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signalled_at is None:
            self._signalled_at = time.monotonic()

    @property
    def cause(self) -> str:
        """The reason of the stop; the signal or the end of the time may be another process's."""
        if self._signalled_at is None and time.monotonic() >= self._stop_at:
            return "because its time is over"
        seconds = 0.0 if self._signalled_at is None else time.monotonic() - self._signalled_at
        return f"{seconds:.1f} s after the signal"

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)
