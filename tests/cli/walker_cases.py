"""A run whose policy needs no model and takes its time, for tests that kill its processes."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.append(str(pathlib.Path(__file__).parents[2]))

from benchmarks import fault_runs


def write_config(folder: pathlib.Path, *plugins: str) -> pathlib.Path:
    """Writes the configuration into a folder; its policy waits for the file `go` there."""
    config = fault_runs.config(16, {"kind": "walker"})
    config["explore"]["search"]["concurrency"] = 2
    config["evaluate"]["num_tasks"] = 8
    return fault_runs.write_run(folder, config, *plugins)


def wait_until(true: Callable[[], object], *processes: subprocess.Popen, seconds: int = 400):
    """Waits for something that the processes do; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        for process in processes:
            assert process.poll() in (None, 0), process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
