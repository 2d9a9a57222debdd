"""The command line in a process of its own."""

from __future__ import annotations

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "tiny.yaml"


def agentrm(*arguments: str, ends: int, script: tuple[str, ...] = ()) -> tuple[str, str]:
    """Runs `agentrm`; gives what it wrote to stdout and stderr.

    Args:
      ends: The exit status that is expected, negative for a signal.
      script: What to run in place of the program itself.
    """
    program = script or ("-m", "agentrm_jax.cli.main")
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == ends, (arguments, done.stdout, done.stderr)
    return done.stdout, done.stderr
