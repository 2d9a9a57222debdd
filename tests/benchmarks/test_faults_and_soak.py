"""The parts of the fault suite and of the soak, and both in their tiny form (slow)."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from agentrm_jax.testing import guess_tasks
from benchmarks import fault_world, faults, process_watch, soak
from benchmarks.fault_runs import forked, status_of, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_slope_is_that_of_most_points():
    line = [(float(t), 5.0 + 2.0 * t / 3600) for t in range(100)]
    assert process_watch.slope_per_hour(line) == pytest.approx(2.0)
    line[50] = (50.0, 1000.0)  # a peak does not count
    assert process_watch.slope_per_hour(line) == pytest.approx(2.0, rel=0.05)
    assert process_watch.slope_per_hour(line[:1]) == 0.0


def test_rates_of_quarters():
    counts = [soak.Count(seconds=t, cpu=t / 2, done=10 * t) for t in range(80)]
    counts += [
        soak.Count(seconds=t, cpu=t / 2, done=10 * 79 + 5 * (t - 79)) for t in range(80, 101)
    ]
    found = soak.rates(counts)
    assert found["first_per_second"] == pytest.approx(10.0)
    assert found["last_per_second"] == pytest.approx(5.0)
    assert found["last_over_first_per_cpu_second"] == pytest.approx(0.5)


def test_a_process_that_takes_memory_and_descriptors_is_noticed():
    """A child of the watched process opens files and fills memory, step by step."""
    leak = (
        "import time\nkept = []\nwhile True:\n"
        "    kept.append((bytearray(2_000_000), open('/dev/null')))\n    time.sleep(0.02)\n"
    )
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {leak!r}])\n"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    try:
        watch = process_watch.ProcessWatch(process.pid)
        wait_until(lambda: process_watch.descendants(process.pid))
        [child] = process_watch.descendants(process.pid)
        wait_until(lambda: (process_watch.PROC / f"{child}/statm").read_text().split()[1] > "2")
        while len(watch.samples.get(child, [])) < 20:
            watch.look()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    rows = soak.processes(watch)
    assert len(rows) == 2
    [leaking] = [row for row in rows if row["mib_per_hour"] > 1000]
    first, last = leaking["descriptors"]
    assert last > first


def test_iterations_of_a_growing_file_are_counted_once(tmp_path):
    path = tmp_path / "trees.jsonl"
    count = soak.LineCount(path)
    assert count() == 0
    path.write_bytes(b'{"kind":"begin"}\n{"kind":"iteration"}\n{"kind":"iter')
    assert count() == 1
    with path.open("ab") as file:
        file.write(b'ation"}\n')
    assert (count(), count()) == (2, 2)


def test_forked_processes_end_with_their_status(tmp_path):
    log = tmp_path / "log.txt"
    assert status_of(forked(lambda: 5, log, {})) == 5
    assert status_of(forked(lambda: int(os.environ["X"]), log, {"X": "7"})) == 7
    assert status_of(forked(lambda: 1 // 0, log, {})) == 70
    with pytest.raises(TimeoutError):
        status_of(forked(lambda: time.sleep(60) or 0, log, {}), seconds=0.2)


@pytest.mark.parametrize("fault", ["exits", "prints garbage"])
def test_a_fault_that_happens_once_changes_no_tree(tmp_path, fault):
    tasks = guess_tasks(2)
    environment = {
        fault_world.FAULT: fault, fault_world.FOLDER: str(tmp_path), fault_world.EVERY: "7",
    }  # fmt: skip
    trees = faults._explored(tasks, environment, iterations=2)
    assert list(tmp_path.iterdir())
    assert trees == faults._explored(tasks, {}, iterations=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faults", "soak"])
def test_tiny(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--tiny"],
        cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["benchmark"] == name
