"""Runs `agentrm` and kills it, as `kill -9` does, when a function is called for the n-th time.

python kill_at.py MODULE:FUNCTION N COMMAND ...
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys


def _kill_at(where: str, call: int) -> None:
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), 0

    @functools.wraps(function)
    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


if __name__ == "__main__":
    from agentrm_jax.cli.main import main

    _kill_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
