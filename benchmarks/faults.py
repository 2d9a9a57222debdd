"""Puts faults into real runs, and checks that the runs survive.

    python -m benchmarks.faults [--tiny] [--kills 50] [--only NAME ...]

For each fault: whether the run survives (it ends as it should, the same command resumes it), tasks
that are lost, results that are recorded twice, the seconds from the fault until the next record,
and whether the result equals that of a run without the fault. Most runs need no trained model:
their policy is a function of the seed and the state, so that equal means equal in every token. Half
of the kills hit runs of `configs/tiny.yaml` with all stages, whose models must be equal to the bit.
Files of all kinds, checkpoints and models too, are damaged as in `benchmarks.bit_flips`.

A fault that this machine cannot make (a small tmpfs needs root) is left out with a line.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import agentrm_jax as arm
from agentrm_jax.core.errors import UserError
from agentrm_jax.testing import guess_policy, guess_tasks
from benchmarks import bit_flips, fault_world, measuring
from benchmarks.fault_runs import (
    Found,
    Runs,
    ended,
    forked,
    num_records,
    status_of,
    wait_until,
)  # fmt: skip

LEASES = ("--leases.enabled=true", "--leases.expire_seconds=2")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The effect of a fault.

    Attributes:
      fault: Its name.
      times: How often it happened.
      survived: Whether the run ended as it should.
      lost: Tasks without a result.
      twice: Results that are there twice.
      seconds: Median seconds until the next record after the fault; None if that says nothing.
      equal: Whether the result is that of a run without the fault; None if it cannot be.
      note: One line.
    """

    fault: str
    times: int
    survived: bool
    lost: int
    twice: int
    seconds: float | None
    equal: bool | None
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The sizes of the benchmark.

    Attributes:
      folder: Where runs are made.
      kills: How often a run is killed.
      tasks: Tasks of a run.
      flips: Flipped bits of each kind of file.
      environment_faults: Faults of environments in one exploration.
      seed: Seed of the instants and places.
    """

    folder: pathlib.Path
    kills: int = 50
    tasks: int = 48
    flips: int = 200
    environment_faults: int = 1000
    seed: int = 0


class Faults:
    """The faults, by the names of the methods."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._rng = random.Random(setting.seed)
        self._runs = Runs(setting.folder / "runs", setting.tasks)
        self._reference: Found | None = None

    @property
    def reference(self) -> Found:
        """A run without faults."""
        if self._reference is None:
            statuses = [self._runs.end(stage, "sound") for stage in ("explore", "evaluate")]
            if any(statuses):
                raise RuntimeError(f"see {self._runs.log}: statuses {statuses}")
            self._reference = self._runs.found("sound")
        return self._reference

    def _row(self, fault: str, times: int, run: str, good: bool, **more: Any) -> Row:
        try:
            found = self._runs.found(run)
        except UserError as error:
            note = str(error)
            return Row(fault=fault, times=times, survived=False, lost=0, twice=0, seconds=None,
                       equal=False, note=note)  # fmt: skip
        return Row(fault=fault, times=times, survived=good, lost=found.lost, twice=found.twice,
                   equal=found.equals(self.reference), **more)  # fmt: skip

    def _stopped(self, run: str, number: signal.Signals, times: int) -> Row:
        """Stops runs, one after the other, until it has happened often enough."""
        happened, good, delays, rows = 0, True, list[float](), list[Row]()
        while good and happened < times and len(rows) <= times:
            name, first = f"{run}{len(rows)}", happened
            for stage in ("explore", "evaluate"):
                share = first + (times - first) // 2 if stage == "explore" else times
                while happened < share:
                    delay, status = self._stopped_once(stage, name, number, happened > first)
                    delays += [] if delay is None else [delay]
                    if status is None:  # it has ended before
                        break
                    happened += 1
                    good &= status == (-number if number == signal.SIGKILL else 0)
                good &= self._runs.end(stage, name) == 0
            rows.append(self._row("", 0, name, good, seconds=None))
        fault = "kill -9, without a model" if number == signal.SIGKILL else "SIGTERM"
        return Row(
            fault=f"{fault}, at random instants", times=happened, seconds=_median(delays),
            survived=all(row.survived for row in rows), lost=sum(row.lost for row in rows),
            twice=sum(row.twice for row in rows), equal=all(row.equal for row in rows),
            note="; ".join(filter(None, (f"{len(rows)} runs", *(row.note for row in rows)))),
        )  # fmt: skip

    def _stopped_once(
        self, stage: str, run: str, number: signal.Signals, resumed: bool
    ) -> tuple[float | None, int | None]:
        """Stops a stage shortly after its next record.

        Returns:
          The seconds to that record if it was resumed, and the status; None if it had ended.
        """
        folder, delay = self._runs.folder / run, None
        began, before = time.monotonic(), num_records(folder)
        pid = self._runs.start(stage, run)
        if not wait_until(lambda: self._runs.began(pid), pid):
            status_of(pid)
            return None, None
        if wait_until(lambda: num_records(folder) > before, pid) and resumed:
            delay = time.monotonic() - began
        time.sleep(self._rng.uniform(0.0, 0.3))
        if ended(pid):
            status_of(pid)
            return delay, None
        os.kill(pid, number)
        return delay, status_of(pid)

    def kill_9(self) -> Iterator[Row]:
        """SIGKILL at random instants of exploration and evaluation."""
        yield self._stopped("killed", signal.SIGKILL, self.setting.kills - self.setting.kills // 2)

    def sigterm(self) -> Iterator[Row]:
        """SIGTERM at random instants: status 0, and the same command resumes."""
        yield self._stopped("stopped", signal.SIGTERM, max(2, self.setting.kills // 5))

    def kill_stages(self) -> Iterator[Row]:
        """SIGKILL at random instants of runs with all stages, training among them."""
        from benchmarks.fault_stages import kill_in_all_stages

        folder, times = self.setting.folder / "stages", self.setting.kills // 2
        found = kill_in_all_stages(folder, times, self._rng)
        stages = ", ".join(f"{count} {name}" for name, count in found.by_stage.items())
        yield Row(
            fault="kill -9, with models, at random instants", times=sum(found.by_stage.values()),
            survived=found.ended, lost=found.lost, twice=found.twice, equal=found.equal,
            seconds=_median(found.delays), note=stages,
        )  # fmt: skip

    def leases(self) -> Iterator[Row]:
        """Three processes: one is killed, one frozen and thawed too late, clocks an hour apart."""
        runs, run = self._runs, "shared"
        folder = runs.folder / run
        slow = {"SECONDS_OF_A_TURN": "0.05"}
        pids = [
            runs.start("explore", run, *LEASES, CLOCK=clock, **slow)
            for clock in ("-3600", "0", "3600")
        ]
        sound, killed, frozen = pids

        def works(pid: int) -> bool:
            files = folder.rglob(f"*-{pid}-*.work")
            return any(path.exists() and path.stat().st_size for path in files)

        happened = wait_until(lambda: works(killed) and works(frozen), *pids)
        os.kill(killed, signal.SIGKILL)
        os.kill(frozen, signal.SIGSTOP)
        began, before = time.monotonic(), num_records(folder)
        wait_until(lambda: num_records(folder) > before, sound)
        seconds = time.monotonic() - began
        good = status_of(sound) == 0
        os.kill(frozen, signal.SIGCONT)
        good &= status_of(frozen) == 0 and status_of(killed) == -signal.SIGKILL
        good &= runs.end("evaluate", run) == 0
        yield self._row("a lease holder killed, one frozen and thawed, clocks 2 h apart",
                        2 * happened, run, good, seconds=seconds)  # fmt: skip

    def full_disk(self) -> Iterator[Row]:
        """A tmpfs that fills up in the middle; it is enlarged, and the same command resumes."""
        run = self._runs.folder / "full"
        run.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(run)], capture_output=True
        )
        if mounted.returncode:
            print("  full_disk: left out, a small tmpfs cannot be mounted here", file=sys.stderr)
            return
        try:
            status = self._runs.end("explore", "full")
            said = self._runs.log.read_text(errors="replace").splitlines()[-1]
            subprocess.run(["mount", "-o", "remount,size=64m", str(run)], check=True)
            good = status == 2 and "no space left" in said.lower()
            good &= all(self._runs.end(stage, "full") == 0 for stage in ("explore", "evaluate"))
            yield self._row("a full disk", 1, "full", good, seconds=None, note=said)
        finally:
            subprocess.run(["umount", "-l", str(run)], check=True)

    def workers(self) -> Iterator[Row]:
        """Workers that hang, exit, eat memory, print garbage, flood; each once at some actions."""
        tasks = guess_tasks(6)
        expected = _explored(tasks, {})
        for name in fault_world.FAULTS:
            folder = self.setting.folder / name.replace(" ", "_")
            folder.mkdir()
            environment = {fault_world.FAULT: name, fault_world.FOLDER: str(folder),
                           fault_world.EVERY: "23"}  # fmt: skip
            began = time.monotonic()
            trees = _explored(tasks, environment)
            seconds, times = time.monotonic() - began, len(list(folder.iterdir()))
            yield Row(
                fault=f"an environment's worker {name}", times=times,
                survived=all(tree.finished and tree.error is None for tree in trees),
                lost=len(tasks) - len(trees), twice=0, seconds=seconds / max(1, times),
                equal=trees == expected,
            )  # fmt: skip

    def environment_faults(self) -> Iterator[Row]:
        """A thousand candidates whose environment raises, each time."""
        times, tasks, iterations = 0, 0, 0
        began = time.monotonic()
        good = True
        while times < self.setting.environment_faults:
            some = guess_tasks(32, seed=tasks)
            environment = {fault_world.FAULT: "raises", fault_world.EVERY: "3"}
            trees = _explored(some, environment, iterations=12)
            tasks += len(trees)
            times += sum(failure.multiplicity for tree in trees for failure in tree.failures)
            iterations += sum(len(tree.iterations) for tree in trees)
            good &= all(tree.finished for tree in trees) and len(trees) == len(some)
        yield Row(fault="environments that raise", times=times, survived=good, lost=0, twice=0,
                  seconds=(time.monotonic() - began) / times, equal=None,
                  note=f"{iterations} iterations of {tasks} trees, all ended")  # fmt: skip

    def damaged_files(self) -> Iterator[Row]:
        """Flipped bits and cuts in every kind of file: refused with its name, or without effect."""
        for cut, (name, kind) in itertools.product((False, True), bit_flips.KINDS.items()):
            times = self.setting.flips // (4 if cut else 1)
            found = bit_flips.measured(kind, times, self.setting.seed, cut=cut)
            yield Row(
                fault=f"{'a cut' if cut else 'a flipped bit'}: {name}", times=times,
                survived=not found["silent"] + found["traceback"], lost=0, twice=0, seconds=None,
                equal=None, note=", ".join(f"{key} {value}" for key, value in found.items()),
            )  # fmt: skip

    def policy_server(self) -> Iterator[Row]:
        """A policy's server that goes away, answers 500, slowly, or nonsense."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        tasks = max(4, self.setting.tasks // 4)
        agent = {"kind": "server", "url": f"http://127.0.0.1:{port}"}
        runs = Runs(self.setting.folder / "served", tasks, agent)
        log = runs.folder / "server.txt"
        found: dict[str, Found] = {}
        for fault in ("", "500", "slow", "nonsense", "away"):
            serve: Callable[[], int] = lambda f=fault: fault_world.serve_policy(  # noqa: E731
                port, "" if f == "away" else f, runs.folder / f"faults{f}"
            )
            server, run = forked(serve, log, {}), f"run{fault}"
            seconds = None
            pid = runs.start("explore", run)
            if fault == "away":
                trees = runs.folder / run / "trees"
                wait_until(lambda t=trees: num_records(t) > 2, pid)
                _kill(server)
                time.sleep(1.0)
                began, before = time.monotonic(), num_records(trees)
                server = forked(serve, log, {})
                wait_until(lambda t=trees, b=before: num_records(t) > b, pid)
                seconds = time.monotonic() - began
            good = status_of(pid) == 0
            _kill(server)
            found[fault] = runs.found(run, ["explore"])
            if fault:
                equal = None if fault == "nonsense" else found[fault].equals(found[""])
                name = {"500": "answers 500", "away": "goes away"}.get(fault, f"answers: {fault}")
                counted = runs.folder / f"faults{fault}"
                times = counted.stat().st_size if counted.exists() else int(fault == "away")
                good &= times > 0
                yield Row(fault=f"the policy's server {name}", times=times, survived=good,
                          lost=found[fault].lost, twice=found[fault].twice, seconds=seconds,
                          equal=equal)  # fmt: skip


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _explored(tasks: Sequence[arm.Task], environment: dict[str, str], iterations: int = 4) -> Any:
    """The trees of an exploration whose workers have some variables."""
    before = dict(os.environ)
    os.environ.update(environment)
    classes = {"guess": fault_world.Faulty}
    try:
        with arm.EnvPool(classes, workers=2, step_seconds=3.0, memory_gib=2.0) as envs:
            return arm.explore(
                guess_policy, envs, tasks, num_iterations=iterations, expansion_width=3
            )
    finally:
        os.environ.clear()
        os.environ.update(before)


NAMES = (
    "kill_9", "sigterm", "leases", "full_disk", "policy_server", "kill_stages", "workers",
    "environment_faults", "damaged_files",
)  # fmt: skip
"""The last four use JAX in this process, so the faults that fork come first."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="few tasks, four kills, ten flips")
    parser.add_argument("--rounds", type=int, default=1, help="ignored")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME",
                        help=", ".join(NAMES))  # fmt: skip
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(folder=pathlib.Path(name), kills=given.kills, seed=given.seed)
        if given.tiny:
            setting = dataclasses.replace(
                setting, kills=4, tasks=6, flips=10, environment_faults=20
            )
        faults = Faults(setting)
        print(f"{'fault':62} {'times':>5} {'survived':>8} {'lost':>4} {'twice':>5} {'s':>6} equal")
        for method in sorted(given.only, key=NAMES.index):
            for row in getattr(faults, method)():
                rows.append(row)
                _print(row)
    good = all(row.survived and not row.lost and not row.twice and row.equal is not False
               for row in rows)  # fmt: skip
    found = {"good": good, "rows": [dataclasses.asdict(row) for row in rows]}
    measuring.finish("faults", found, 0)
    return int(not good)


def _print(row: Row) -> None:
    seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
    equal = {None: "-", True: "yes", False: "NO"}[row.equal]
    print(
        f"{row.fault:62} {row.times:5} {'yes' if row.survived else 'NO':>8} {row.lost:4} "
        f"{row.twice:5} {seconds:>6} {equal:5} {row.note[:100]}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
