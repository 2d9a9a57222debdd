"""Kills at random instants of a run with models, through all of its stages."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from agentrm_jax.data.trees import FILE, TreeRecord, TreeStore
from agentrm_jax.pipeline.models import load_policy, load_reward
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.json_lines import read_json_lines
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from benchmarks.fault_runs import num_records

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"
_IMPORTS = 3.0
"""Seconds in which a process does little but import."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kills:
    """The outcome of the kills.

    Attributes:
      by_stage: The number of kills in each stage.
      ended: Whether each run ended with status 0, and each kill was one.
      lost: Tasks without a tree, and rows without a result.
      twice: Tasks with more than one tree.
      equal: Whether models are equal to the bit, and trees and results except for last bits of
        log-probabilities.
      delays: Seconds from each restart until the next record.
    """

    by_stage: dict[str, int]
    ended: bool
    lost: int
    twice: int
    equal: bool
    delays: list[float]


def kill_in_all_stages(folder: pathlib.Path, times: int, rng: random.Random) -> Kills:
    """Kills `agentrm run` until it has happened often enough, and starts it again each time.

    Args:
      folder: Where the runs are made; a run that ends makes room for the next.
      times: The number of kills.
      rng: Draws the instants, uniformly over the seconds of a run that is left alone.
    """
    began = time.monotonic()
    good = _start(folder / "sound").wait() == 0
    seconds = time.monotonic() - began
    by_stage, delays = collections.Counter[str](), list[float]()
    run = 0
    while good and by_stage.total() < times:
        path, before = folder / f"run{run}", num_records(folder / f"run{run}")
        process, began = _start(path), time.monotonic()
        instant, waits = began + rng.uniform(_IMPORTS, max(seconds, 2 * _IMPORTS)), True
        while process.poll() is None and time.monotonic() < instant:
            if waits and num_records(path) > before:
                waits = False
                if before:
                    delays.append(time.monotonic() - began)
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == -signal.SIGKILL:
            by_stage[_stage(path)] += 1
        elif not before:  # a whole run, of which the programs were compiled before
            seconds = min(seconds, time.monotonic() - began)
        good &= status in (0, -signal.SIGKILL)
        run += status == 0
    good &= _start(folder / f"run{run}").wait() == 0
    sound, runs = folder / "sound", [folder / f"run{i}" for i in range(run + 1)]
    found = [_compared(sound, each) for each in runs] if good else []
    return Kills(
        by_stage=dict(by_stage), ended=good, lost=sum(lost for lost, _, _ in found),
        twice=sum(twice for _, twice, _ in found), equal=good and all(e for _, _, e in found),
        delays=delays,
    )  # fmt: skip


def _start(folder: pathlib.Path) -> subprocess.Popen[bytes]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "agentrm_jax.cli.main", "run", CONFIG, "--output", folder)
    with (folder.parent / "log.txt").open("ab") as log:
        return subprocess.Popen([*map(str, command)], stdout=log, stderr=log)


def _stage(folder: pathlib.Path) -> str:
    """The stage in which a run was killed."""
    found = sorted(folder.rglob(".activity.json"), key=lambda path: path.stat().st_mtime)
    return str(json.loads(found[-1].read_bytes())["stage"]) if found else "start"


def _compared(sound: pathlib.Path, run: pathlib.Path) -> tuple[int, int, bool]:
    """Lost, recorded twice, and whether the results are equal."""
    expected, found = (
        _bare(TreeStore.read(each / "trees", finished=True)) for each in (sound, run)
    )
    begun = collections.Counter(
        record["task"]["task_id"]
        for record in read_json_lines(run / "trees" / FILE, finished=True)
        if record["kind"] == "begin"
    )
    rows = [_rows(each) for each in (sound, run)]
    lost = len(expected[0].keys() - found[0].keys()) + max(0, len(rows[0]) - len(rows[1]))
    equal = expected[0] == found[0] and rows[0] == rows[1] and _same_models(sound, run)
    equal &= np.allclose(expected[1], found[1], atol=1e-4)
    return lost, sum(count - 1 for count in begun.values()), equal


def _bare(trees: dict[str, TreeRecord]) -> tuple[dict[str, TreeRecord], list[float]]:
    """The trees without their log-probabilities, and these."""
    bare, log_probs = dict[str, TreeRecord](), list[float]()
    for task_id, tree in sorted(trees.items()):
        iterations = []
        for iteration in tree.iterations:
            nodes = []
            for node in iteration.nodes:
                log_probs.extend(node.step.log_probs)
                step = dataclasses.replace(node.step, log_probs=())
                nodes.append(dataclasses.replace(node, step=step))
            iterations.append(dataclasses.replace(iteration, nodes=tuple(nodes)))
        bare[task_id] = dataclasses.replace(tree, iterations=tuple(iterations))
    return bare, log_probs


def _rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    rows = read_json(folder / "results.json")
    return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in rows]


def _same_models(a: pathlib.Path, b: pathlib.Path) -> bool:
    mesh = make_mesh(MeshConfig())
    for load, name in (
        (load_policy, "sft"), (load_policy, "reward/implicit"), (load_reward, "reward/explicit"),
    ):  # fmt: skip
        leaves = [jax.tree.leaves(load(run / name / "model", "float32", mesh).params)
                  for run in (a, b)]  # fmt: skip
        if not all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True)):
            return False
    return True
