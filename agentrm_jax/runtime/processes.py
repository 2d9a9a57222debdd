"""Several processes of one run: how they find each other, share values and work, and wait.

Every process runs the same program on the same global arrays. Work of one process alone, such as
writing a file, is done by the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.text import described, first_line
from agentrm_jax.runtime.interrupts import stopped_by_sigterm
from agentrm_jax.runtime.json_lines import move_records

T = TypeVar("T")

_LONGEST_WAIT = 30 * 24 * 3600  # seconds
_waits = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """The processes of a run and the address at which they meet; by default there is one process.

    Attributes:
      coordinator: HOST:PORT at which the first process can be reached; or `auto` on TPU pods, and
        under SLURM and Open MPI, which set it and the two numbers below.
      num_processes: Number of processes.
      process_id: Number of this process, counted from 0.
      heartbeat_seconds: Seconds of silence after which a process counts as dead, and the others
        end.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 60

    def __post_init__(self) -> None:
        check_fields(
            self, num_processes="[1, inf)", process_id="[0, inf)", heartbeat_seconds="[1, inf)"
        )
        numbers = {"num_processes": self.num_processes, "process_id": self.process_id}
        given = [name for name, number in numbers.items() if number is not None]
        if self.coordinator in (None, "auto"):
            if given:
                raise UserError("needs distributed.coordinator to be HOST:PORT", field=given[0])
        elif not self.coordinator.rpartition(":")[2].isdigit() or self.coordinator[0] == ":":
            raise UserError(
                field="coordinator", value=self.coordinator, expected="HOST:PORT or auto"
            )
        elif self.num_processes is None or self.process_id is None:
            missing = next(name for name, number in numbers.items() if number is None)
            raise UserError(
                "must be set because distributed.coordinator is HOST:PORT", field=missing
            )
        elif not 0 <= self.process_id < self.num_processes:
            raise UserError(
                field="process_id", value=self.process_id, expected=f"in [0, {self.num_processes})"
            )


def join(config: DistributedConfig) -> None:
    """Waits for the other processes; before anything asks JAX for its devices.

    Raises:
      UserError: They cannot be found.
    """
    if config.coordinator is None:
        return
    try:
        jax.distributed.initialize(
            None if config.coordinator == "auto" else config.coordinator,
            config.num_processes,
            config.process_id,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            shutdown_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:  # also those of the network
        raise UserError(
            f"must be an address at which all processes meet; no other process was found "
            f"({first_line(error)})",
            field="distributed.coordinator",
        ) from None
    # JAX takes SIGTERM for itself and then nothing ends; `train.fit` has a handler of its own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_joined() -> None:
    """Refuses to work next to processes that this one has not joined, as on a TPU pod.

    Raises:
      UserError: There are such processes.
    """
    count = jax.process_count()
    if count > 1 and not jax.distributed.is_initialized():
        raise UserError(
            f"must be auto because this is one of {count} processes",
            field="distributed.coordinator",
        )


@contextlib.contextmanager
def ended_with_others() -> Iterator[None]:
    """Ends this process with one line if a computation that several share fails in the block.

    Another process is gone then. JAX would wait for it until its heartbeat is missed, and so would
    everything that is done together, such as to close checkpoints.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            "agentrm: error: another process ended, or a device failed "
            f"({first_line(error)}); the same "
            "command resumes from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def stoppable() -> contextlib.AbstractContextManager[None]:
    """Returns a block that SIGTERM ends, see `interrupts.stopped_by_sigterm`.

    With other processes it does nothing: they would wait for this one.
    """
    return stopped_by_sigterm() if jax.process_count() == 1 else contextlib.nullcontext()


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def from_first(work: Callable[[], T]) -> T:
    """Runs work in the first process and returns its result in all processes.

    The others wait. All processes have to call this, in the same order.

    Args:
      work: Returns a value that JSON can hold; the result is that value after a round trip.

    Raises:
      UserError: The work raised something; the first process raises that itself.
    """
    if jax.process_count() == 1:
        return work()
    if not is_first():
        found = json.loads(_received())
        if "error" in found:
            raise UserError(found["error"], field=found["field"])
        return found["value"]
    try:
        value = work()
    except BaseException as error:
        reason, field = f"the first process ended: {described(error)}", None
        if isinstance(error, UserError):
            reason, field = (str(error), None) if error.where else (error.reason, error.field)
        _send(json.dumps({"error": reason, "field": field}))
        raise
    _send(json.dumps({"value": value}))
    return value


def from_all(value: T) -> list[T]:
    """Returns the values of all processes, in their order, after a round trip through JSON.

    It waits for all processes.
    """
    if jax.process_count() == 1:
        return [value]
    _wait()
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def own_share(items: Sequence[T]) -> list[T]:
    """Returns the items that this process works on."""
    return list(items[jax.process_index() :: jax.process_count()])


def own_part(path: pathlib.Path) -> pathlib.Path:
    """Returns the path at which this process writes its part of a file; see `gather`."""
    number = jax.process_index()
    if jax.process_count() == 1:
        return path
    return path.with_name(f"{path.stem}.part{number}{path.suffix}")


def gather(path: pathlib.Path) -> None:
    """Moves what processes have written into the file it belongs to, also those of earlier runs.

    It waits for all of them.
    """
    from_all(None)
    from_first(lambda: move_records(path.parent.glob(f"{path.stem}.part*{path.suffix}"), path))


def _wait() -> None:
    """Waits for all processes, however long they work: a collective gives up after some time, on
    CPUs after half an hour."""
    from jax._src import distributed  # nothing public waits without a collective

    client = distributed.global_state.client
    assert client is not None  # there are several processes
    client.wait_at_barrier(f"agentrm/{next(_waits)}", 1000 * _LONGEST_WAIT)


def _send(text: str) -> None:
    _wait()
    data = np.frombuffer(text.encode(), np.uint8)
    multihost_utils.broadcast_one_to_all(np.int32(len(data)))
    multihost_utils.broadcast_one_to_all(data)


def _received() -> bytes:
    _wait()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
    return multihost_utils.broadcast_one_to_all(np.zeros(size, np.uint8)).tobytes()
