"""Starts the rendered script of a place."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys

from agentrm_jax.core.errors import UserError
from agentrm_jax.launch.kinds import KINDS


def start(kind: str, text: str) -> int:
    """Starts a rendered script; returns the exit status of the program that reads it.

    Programs next to this Python's interpreter are found first, so that the script runs `agentrm`
    and `python3` of this installation, whether it is activated or not.

    Args:
      kind: The place.
      text: The script.

    Raises:
      UserError: The user has to start this kind, or the program that starts it is missing.
    """
    place = KINDS[kind]
    if not place.starts:
        raise UserError(
            f"{kind} is not started by this command; add --dry-run to print its {place.suffix} "
            "file, whose first lines say how to start it"
        )
    if shutil.which(place.starts[0]) is None:
        raise UserError(f"{place.starts[0]} is missing: {place.needs or 'install it'}")
    own = str(pathlib.Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    with subprocess.Popen(place.starts, stdin=subprocess.PIPE, env=environment) as process:
        previous = {
            number: signal.signal(number, lambda number, _: process.send_signal(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            process.communicate(text.encode())
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        status = process.returncode
    return status if status >= 0 else 128 - status
