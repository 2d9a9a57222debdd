"""Long runs, to see whether memory, descriptors, processes and speed stay the same.

    python -m benchmarks.soak --hours H [--tiny] [--only explore|serve] [--environment NAME]

`explore` is `agentrm explore` on more tasks than it can finish: each finished tree makes room for
the next task. Its policy is the tiny model of `configs/tiny.yaml`, which is trained first.
Mazes run in the main process. ScienceWorld runs in a Java machine, which is watched as well.
`serve` is `agentrm serve` with a tiny reward model, asked by 64 clients for scores of conversations
of different lengths. Each part takes the given hours; two thirds of them for `explore` if both run.

It prints the slope of the resident memory of every process that lived until the end, its
descriptors and threads after the first fifth and at the end, and the throughput of the last quarter
next to that of the first quarter after the first fifth, which is left out as start. Other work on
the same machine disturbs rates by the clock; rates by the CPU-second of the processes are next to
them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import measuring
from benchmarks.process_watch import PROC, ProcessWatch, descendants, slope_per_hour

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "tiny.yaml"
_KINDS = (  # those with the most tasks, so that the mixture is the same for two hours
    "inclined-plane-friction-named-surfaces, test-conductivity, use-thermometer, "
    "test-conductivity-of-unknown-substances, mendelian-genetics-unknown-plant, "
    "measure-melting-point-known-substance"
)
SETTINGS = {
    "maze": ("--explore.search.num_iterations=4",),
    "scienceworld": (
        f"--environments=[{{name: scienceworld, kinds: [{_KINDS}], prompt: false, max_steps: 20}}]",
        "--experts.num_tasks=40", "--sft.fit.length=2048", "--engine.context=2048",
        "--engine.cache_tokens=65536", "--explore.search.num_iterations=12",
    ),
}  # fmt: skip
"""What differs from `configs/tiny.yaml`, by environment."""
CLIENTS = 64
WARM_UP = 0.2
"""The part of the time that is left out of slopes and rates."""
_TICKS = os.sysconf("SC_CLK_TCK")
_AGENTRM = (sys.executable, "-m", "agentrm_jax.cli.main")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """The number of finished items after some time.

    Attributes:
      seconds: Seconds since the watch began.
      cpu: CPU-seconds of the watched processes.
      done: Items that were done.
    """

    seconds: float
    cpu: float
    done: int


def cpu_seconds(root: int) -> float:
    """Returns the CPU-seconds of a process and of its living descendants."""
    total = 0
    for pid in [root, *descendants(root)]:
        try:
            fields = (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def watched(
    process: subprocess.Popen[Any], seconds: float, done: Callable[[], int], every: float
) -> tuple[ProcessWatch, list[Count]]:
    """Samples a process until the time is over.

    Raises:
      RuntimeError: The process has ended before.
    """
    watch, counts = ProcessWatch(process.pid), []
    while watch.seconds < seconds:
        if process.poll() is not None:
            raise RuntimeError(f"the process ended with status {process.returncode}")
        watch.look()
        counts.append(Count(seconds=watch.seconds, cpu=cpu_seconds(process.pid), done=done()))
        time.sleep(every)
    return watch, counts


def rates(counts: Sequence[Count]) -> dict[str, float]:
    """Returns the throughput of the first and the last quarter, by the clock and by CPU-second."""
    warm = counts[int(WARM_UP * len(counts)) :]
    quarter = max(1, (len(warm) - 1) // 4)
    found: dict[str, float] = {}
    for name, (a, b) in {
        "first": (warm[0], warm[quarter]),
        "last": (warm[-1 - quarter], warm[-1]),
    }.items():
        done = b.done - a.done
        found[f"{name}_per_second"] = done / (b.seconds - a.seconds)
        found[f"{name}_per_cpu_second"] = done / max(b.cpu - a.cpu, 1e-9)
    for unit in ("second", "cpu_second"):
        found[f"last_over_first_per_{unit}"] = found[f"last_per_{unit}"] / max(
            found[f"first_per_{unit}"], 1e-9
        )
    return found


def processes(watch: ProcessWatch) -> list[dict[str, Any]]:
    """Returns a row for each process that lived until the end."""
    end = max(samples[-1].seconds for samples in watch.samples.values())
    rows = []
    for pid, samples in watch.samples.items():
        warm = samples[int(WARM_UP * len(samples)) :]
        if samples[-1].seconds < 0.95 * end or len(warm) < 2:
            continue
        points = [(sample.seconds, sample.resident / 2**20) for sample in warm]
        rows.append(
            {
                "process": watch.names[pid],
                "mib": round(points[-1][1], 1),
                "mib_per_hour": round(slope_per_hour(points), 2),
                "mib_after_warm_up": round(points[0][1], 1),
                "descriptors": [warm[0].descriptors, warm[-1].descriptors],
                "threads": [warm[0].threads, warm[-1].threads],
            }
        )
    return rows


def finished(
    part: str, watch: ProcessWatch, counts: Sequence[Count], **more: Any
) -> dict[str, Any]:
    """Prints and returns what a part found."""
    rows, found = processes(watch), rates(counts)
    minutes = watch.seconds / 60
    print(f"\n{part}: {minutes:.1f} minutes, {counts[-1].done:,} done")
    print(
        f"  {'process':28} {'MiB then':>9} {'now':>9} {'MiB/hour':>9} {'descriptors':>12} "
        f"{'threads':>9}"
    )
    for row in rows:
        descriptors, threads = (
            " -> ".join(map(str, row[key])) for key in ("descriptors", "threads")
        )
        print(
            f"  {row['process'][:28]:28} {row['mib_after_warm_up']:9} {row['mib']:9} "
            f"{row['mib_per_hour']:9} {descriptors:>12} {threads:>9}"
        )
    for unit in ("second", "cpu_second"):
        first, last = found[f"first_per_{unit}"], found[f"last_per_{unit}"]
        change = 100 * (found[f"last_over_first_per_{unit}"] - 1)
        name = unit.replace("_", "-")
        print(f"  per {name:11} first quarter {first:8.2f}, last {last:8.2f} ({change:+.1f}%)")
    for name, kept in checks(rows, found).items():
        print(f"  {name}: {'yes' if kept else 'NO'}")
    seen, last = len(watch.samples), len(rows)
    print(
        f"  processes: {seen} seen, {last} at the end"
        + "".join(f", {k} {v}" for k, v in more.items())
    )
    return {"minutes": minutes, "done": counts[-1].done, **found, "processes": rows,
            "processes_seen": seen, "checks": checks(rows, found), **more}  # fmt: skip


def checks(rows: Sequence[dict[str, Any]], found: dict[str, float]) -> dict[str, bool]:
    """Returns whether each promise was kept; they say little about a run of less than an hour."""
    return {
        "memory grows by less than 1% an hour": all(
            row["mib_per_hour"] < 0.01 * row["mib_after_warm_up"] for row in rows
        ),
        "no process has more descriptors at the end": all(
            row["descriptors"][1] <= row["descriptors"][0] for row in rows
        ),
        "the last quarter is within 5% of the first": abs(found["last_over_first_per_second"] - 1)
        < 0.05,
    }


class LineCount:
    """Counts the finished iterations in a growing file of trees."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._offset, self._count = path, 0, 0

    def __call__(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._count += whole.count(b'"kind":"iteration"')
        return self._count


def explore(folder: pathlib.Path, seconds: float, every: float, environment: str) -> dict[str, Any]:
    """Explores for some time; a stop by SIGTERM ends it."""
    common = (str(CONFIG), "--output", str(folder / "run"), *SETTINGS[environment])
    for stage in ("experts", "sft"):
        subprocess.run([*_AGENTRM, stage, *common], check=True, capture_output=True)
    given = (
        f"--explore.num_tasks={max(500, int(10 * seconds))}", "--explore.search.concurrency=8",
        "--budget.hours=100",
    )  # fmt: skip
    count = LineCount(folder / "run" / "trees" / "trees.jsonl")
    with (folder / "explore.txt").open("wb") as log:
        process = subprocess.Popen(
            [*_AGENTRM, "explore", *common, *given], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while not count() and process.poll() is None:  # programs are compiled
                time.sleep(0.1)
            watch, counts = watched(process, seconds, count, every)
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=120)
        except Exception:
            print((folder / "explore.txt").read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()
    return finished("explore (tree iterations)", watch, counts, status=status)


class Load:
    """Clients that ask for scores, each as soon as it has the answer before."""

    def __init__(self, url: str, clients: int) -> None:
        self.answered, self.failed = 0, 0
        self._url, self._ends, self._lock = url, threading.Event(), threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(clients)
        self._clients = [self._pool.submit(self._ask, number) for number in range(clients)]

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        while not self._ends.is_set():
            turns = 2 * rng.randrange(1, 5)
            words = ("Guess a number from 1 to 9.", "Action: guess 5", "Too low.")
            messages = [
                {
                    "role": ("user", "assistant")[i % 2],
                    "content": f"{rng.choice(words)} {rng.random()}",
                }
                for i in range(turns)
            ]
            body = json.dumps({"messages": messages}).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{self._url}/classify", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=300) as response:
                    good = "data" in json.loads(response.read())
            except (OSError, ValueError):
                good = False
            with self._lock:
                self.answered += good
                self.failed += not good and not self._ends.is_set()

    def close(self) -> None:
        self._ends.set()
        self._pool.shutdown()


def serve(folder: pathlib.Path, seconds: float, every: float, environment: str) -> dict[str, Any]:
    """Serves for some time under the load of the clients."""
    from agentrm_jax.testing import write_tiny_reward_model

    model = write_tiny_reward_model(folder / "reward")
    with (folder / "serve.txt").open("wb") as log:
        process = subprocess.Popen(
            [*_AGENTRM, "serve", "--port", "0", "--reward-model", str(model)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        load = Load(process.stdout.readline().split()[-1], CLIENTS)
        try:
            watch, counts = watched(process, seconds, lambda: load.answered, every)
        finally:
            load.close()
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=120)
    return finished(
        f"serve ({CLIENTS} clients, answers)", watch, counts, failed=load.failed, status=status
    )


PARTS = {"explore": explore, "serve": serve}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, default=3.0, help="of all parts (default: 3)")
    parser.add_argument("--tiny", action="store_true", help="ten seconds of each part")
    parser.add_argument("--rounds", type=int, default=1, help="ignored")
    parser.add_argument(
        "--environment", choices=sorted(SETTINGS), default="maze", help="of explore (default: maze)"
    )
    parser.add_argument("--only", choices=sorted(PARTS), help="one part, for all of the hours")
    given = parser.parse_args(arguments)
    seconds = 15.0 if given.tiny else 3600 * given.hours
    shares = {given.only: 1.0} if given.only else {"explore": 2 / 3, "serve": 1 / 3}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for part, share in shares.items():
            every = max(0.2, share * seconds / 600)
            found[part] = PARTS[part](pathlib.Path(name), share * seconds, every, given.environment)
    measuring.finish("soak", {"hours": seconds / 3600, **found}, 0)
    bad = [part for part, row in found.items() if row["status"] or row.get("failed")]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
