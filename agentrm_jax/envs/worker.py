"""The main program of a process that runs environments; `worker_process` starts it.

Started as `python -m agentrm_jax.envs.worker SOCKET MEMORY CLASSES`. A message is a line of JSON:
the handles to forget and the requests. Each request is answered by a line of its own as soon as it
is done, so that the other end knows which one it was when this process dies or hangs. Answers are
numbered, so that nothing else that is written to the connection is taken for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import resource
import signal
import socket
import sys

from agentrm_jax.envs.episodes import Episodes, answer_to_json, request_from_json
from agentrm_jax.envs.given import Families, Location


def main() -> None:
    _limit_memory(int(sys.argv[2]))
    _die_with_parent()
    located = json.loads(sys.argv[3])
    families = Families({name: Location(**fields) for name, fields in located.items()})
    serve(socket.socket(fileno=int(sys.argv[1])), families)


def serve(connection: socket.socket, families: Families) -> None:
    """Answers messages until the other end closes the connection."""
    episodes, numbers = Episodes(families), itertools.count()
    connection.sendall(b"\n")  # ready
    with connection, connection.makefile("rb") as messages:
        for message in messages:
            released, requests = json.loads(message)
            episodes.release(released)
            for request in requests:
                answer = answer_to_json(episodes.perform(request_from_json(request)))
                connection.sendall(json.dumps([next(numbers), answer]).encode() + b"\n")


def _limit_memory(limit: int) -> None:
    """An environment that asks for more gets a MemoryError instead of the machine's memory."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    with contextlib.suppress(ValueError):  # some systems have no such limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent() -> None:
    """Has the kernel end this process when the parent is gone, even in the middle of a loop in C.

    Standard input is a pipe to which the parent never writes. When the parent dies, however it
    dies, the pipe closes; that raises SIGIO, whose default action is to terminate.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
