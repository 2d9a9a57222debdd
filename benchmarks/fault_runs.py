"""Runs that faults are put into: their configuration, their processes, and what they leave."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from agentrm_jax.cli.main import main
from agentrm_jax.data.trees import FILE, TreeStore
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.runtime.json_lines import read_json_lines

PLUGIN = '''
import dataclasses
import os
import pathlib
import random
import time
from typing import ClassVar

import agentrm_jax as arm
from agentrm_jax.pipeline.reward_kinds import RewardKind

wall_clock = time.time
if "CLOCK" in os.environ:
    time.time = lambda: wall_clock() + float(os.environ["CLOCK"])
SECONDS = float(os.environ.get("SECONDS_OF_A_TURN", "0.01"))


@arm.register_policy("walker")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Walker(arm.PolicyKind):
    """Walks at random, in a way that its seed and the state decide; waits for the file `go`."""

    explores_without_trunk: ClassVar[bool] = True

    def open(self, options):
        pathlib.Path(__file__).with_name(f"began-{os.getpid()}").touch()
        while not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.05)

        def reply(state, n, seed):
            time.sleep(SECONDS)
            draw = random.Random(f"{seed} {len(state.steps)}")
            ways = ["up", "down", "left", "right"]
            return [f"Thought: on.\\nAction: move {draw.choice(ways)}" for _ in range(n)]

        return reply


@arm.register_reward_kind("shortness")
class Shortness(RewardKind):
    """Prefers short trajectories."""

    def open(self, policy):
        return arm.FunctionScorer(lambda states: [-len(state.steps) for state in states])
'''

STAGES = ("explore", "evaluate")
_PRELOADED = tuple(
    f"agentrm_jax.{name}"
    for name in ("pipeline.explore", "pipeline.evaluate", "pipeline.policies", "clients.connection")
)


def config(tasks: int, agent: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a run without a trained model."""
    search = {"num_iterations": 3, "expansion_width": 2, "concurrency": 4}
    return {
        "environments": [{"name": "maze", "prompt": False, "max_steps": 6}],
        "seed": 3,
        "train_policy": False,
        "agent": agent,
        "explore": {"num_tasks": tasks, "search": search},
        "evaluate": {"num_tasks": tasks, "n": 3, "methods": ["greedy", "best_of_n"]},
    }


def write_run(folder: pathlib.Path, config: dict[str, Any], *plugins: str) -> pathlib.Path:
    """Writes a configuration and its plugins; the policy waits for the file `go` in the folder."""
    plugin, path = folder / "walker.py", folder / "run.yaml"
    plugin.write_text(PLUGIN)
    path.write_text(yaml.safe_dump({**config, "plugins": [str(plugin), *plugins]}))
    return path


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The search results of a run.

    Attributes:
      trees: Its trees, by task.
      rollouts: The replies of its trajectories, by method, task and sample.
      lost: Tasks without a result.
      twice: Tasks with more than one.
    """

    trees: dict[str, Any]
    rollouts: dict[tuple[str, str, int], tuple[str, ...]]
    lost: int
    twice: int

    def equals(self, other: Found) -> bool:
        return (self.trees, self.rollouts) == (other.trees, other.rollouts)


class Runs:
    """Starts `agentrm` in processes of its own, on runs in one folder.

    A process is forked from this one, which has imported the package and has asked for no device:
    that saves the seconds of the import, and shares nothing else.

    Args:
      folder: The folder.
      tasks: Tasks of each stage.
      agent: The policy of the configuration.
    """

    def __init__(
        self, folder: pathlib.Path, tasks: int, agent: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.tasks = folder, tasks
        folder.mkdir(parents=True, exist_ok=True)
        self.config = write_run(folder, config(tasks, agent or {"kind": "walker"}))
        (folder / "go").touch()
        self.log = folder / "log.txt"
        for name in _PRELOADED:
            importlib.import_module(name)

    def start(self, stage: str, run: str, *options: str, **environment: str) -> int:
        """Starts a stage; returns the process."""
        rewards = ("--rewards=[shortness]",) if stage == "evaluate" else ()
        words = [stage, str(self.config), "--output", str(self.folder / run), *rewards, *options]
        return forked(lambda: main(words), self.log, environment)

    def end(self, stage: str, run: str, *options: str, **environment: str) -> int:
        """Runs a stage to its end; returns its status."""
        return status_of(self.start(stage, run, *options, **environment))

    def began(self, pid: int) -> bool:
        """Returns whether a process has opened its policy."""
        return (self.folder / f"began-{pid}").exists()

    def found(self, run: str, stages: Sequence[str] = STAGES) -> Found:
        """Reads what a finished run left.

        Raises:
          UserError: Something in it is damaged, or there twice.
        """
        folder = self.folder / run
        trees: dict[str, Any] = {}
        rollouts: dict[tuple[str, str, int], tuple[str, ...]] = {}
        lost, begun = 0, collections.Counter[str]()
        if "explore" in stages:
            trees = TreeStore.read(folder / "trees", finished=True)
            for record in read_json_lines(folder / "trees" / FILE, finished=True):
                if record["kind"] == "begin":
                    begun[record["task"]["task_id"]] += 1
            lost += self.tasks - len(trees)
        if "evaluate" in stages:
            for method, samples in (("greedy", 1), ("best_of_n", 3)):
                path = folder / "eval" / method / "rollouts.jsonl"
                found = list(read_rollouts(path, finished=True))
                for each in found:
                    key = (method, each.trajectory.task.task_id, each.sample)
                    rollouts[key] = tuple(step.reply for step in each.trajectory.steps)
                lost += self.tasks * samples - len(found)
        twice = sum(count - 1 for count in begun.values())
        return Found(trees=trees, rollouts=rollouts, lost=lost, twice=twice)


def forked(work: Callable[[], int], log: pathlib.Path, environment: dict[str, str]) -> int:
    """Returns a child process that does the work and ends with its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        os.environ.update(environment)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.setsid()
        status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int, seconds: float = 600.0) -> int:
    """Waits for a child; returns its status, negative for a signal.

    Raises:
      TimeoutError: It hangs; it is killed.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} hangs")


def ended(pid: int) -> bool:
    """Returns whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(true: Callable[[], Any], *pids: int, seconds: float = 300.0) -> bool:
    """Waits for something; returns whether it came before the processes ended.

    Raises:
      TimeoutError: Neither came.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        if pids and all(ended(pid) for pid in pids):
            return False
        time.sleep(0.01)
    raise TimeoutError("nothing happens")


def num_records(folder: pathlib.Path) -> int:
    """Returns the number of records of search results in a run, joined or not."""
    total = 0
    for root, _, names in os.walk(folder):  # unlike `rglob`, it accepts folders that vanish
        for name in names:
            if name.endswith((".jsonl", ".work", ".record")):
                with contextlib.suppress(FileNotFoundError):
                    total += pathlib.Path(root, name).read_bytes().count(b"\n")
    return total
