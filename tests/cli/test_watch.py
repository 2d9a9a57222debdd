"""`agentrm watch`, budgets that stop a search, and stages linked from another run."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_cases import CONFIG, agentrm, without_log_probs

from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.trees import BackupRecord, IterationRecord, NodeRecord, TreeStore
from agentrm_jax.evaluation.rollout_files import stored_rollouts
from agentrm_jax.pipeline.run_table import sparkline, view_table
from agentrm_jax.pipeline.run_view import SILENT_SECONDS, RunWatcher
from agentrm_jax.runtime.activity import ACTIVITY_FILE
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.search.rollouts import Rollout


def text_of(run: pathlib.Path, view) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(view_table(run, view))
    return console.export_text()


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    (tmp_path / "config.resolved.yaml").write_text("seed: 0\n")
    return tmp_path


def test_a_search_at_work_is_counted_as_it_grows(run):
    watcher, task = RunWatcher(run), Task(environment="maze", task_id="maze/1", max_steps=9)
    assert watcher.look().stages == ()
    metrics = MetricWriter(run / "metrics.jsonl", "sft")
    with Stage("sft", run / "sft", {}) as stage:
        for update, loss in enumerate((3.0, 2.0, 1.0)):
            metrics.write(update, {"loss": loss})
        stage.finish({"loss": 1.0})
    with Stage("explore", run / "trees", {}) as stage, stage.progress("explore", 8) as bar:
        stage.activity.counts = lambda: {"tokens_decoded": 640, "env_steps": 20}
        store = TreeStore(run / "trees")
        store.begin(task, "go")
        for iteration, outcome in enumerate((1.0, 0.0)):
            answer = Transition(observation="", reward=outcome, done=True, success=False)
            step = Step(reply="", action="", transition=answer)
            node = NodeRecord(node=iteration + 1, parent=0, step=step, multiplicity=1)
            record = IterationRecord(
                task_id=task.task_id, iteration=iteration, nodes=(node,),
                path=(0, iteration + 1), outcome=outcome,
                further=(BackupRecord(path=(0, 1), outcome=1.0),) * 2 * iteration,
            )  # fmt: skip
            store.append(record)
            stage.activity._written = 0.0  # a second has passed
            bar.advance()
            view = watcher.look()
            assert view.trees is not None
            assert view.trees.iterations == iteration + 1
        with (run / "trees" / "trees.jsonl").open("ab") as file:
            file.write(b'{"crc32":"00000000","reco')  # torn: the writer is at work
        view = watcher.look()
        assert [(s.name, s.state) for s in view.stages] == [("sft", "done"), ("explore", "at work")]
        assert view.trees is not None
        assert view.trees.states_by_visits == (1, 0, 2, 0, 0)
        assert view.trees.mean_outcome == 0.75
        assert view.losses == {"sft": [3.0, 2.0, 1.0]}
        shown = text_of(run, view)
    for part in ("2/8", "left", "tokens decoded/s", "1: 1  2: 0  3-4: 2", "█▅▁ 1"):
        assert part in shown, (part, shown)
    [_, explore] = watcher.look().stages
    assert explore.state == "at work"  # this process lives, and the stage has not ended


def test_a_dead_process_and_a_silent_host_are_told_apart_from_work(run):
    with Stage("explore", run / "trees", {}):
        pass
    path = run / "trees" / ACTIVITY_FILE
    record = json.loads(path.read_text())

    def state(**changes):
        path.write_text(json.dumps(record | changes))
        return RunWatcher(run).look().stages[0].state

    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert state() == "at work"
    assert state(pid=int(ended.stdout)) == "stopped"
    assert state(host="elsewhere", updated=time.time()) == "at work"
    assert state(host="elsewhere", updated=time.time() - SILENT_SECONDS - 1) == "stopped"
    path.write_text("{")  # then the newest record of the stage decides
    assert RunWatcher(run).look().stages[0].state == "at work"
    long_ago = time.time() - SILENT_SECONDS - 1
    os.utime(run / "trees" / "seconds.json", (long_ago, long_ago))
    assert RunWatcher(run).look().stages[0].state == "stopped"
    assert record["host"] == socket.gethostname()


def test_returns_of_methods_are_shown(run):
    tasks = [Task(environment="maze", task_id=f"maze/{i}", max_steps=3) for i in range(2)]
    answer = Transition(observation="", reward=0.5, done=True, success=False)
    step = Step(reply="", action="", transition=answer)
    rollouts = [
        Rollout(
            trajectory=Trajectory(task=task, first_observation="go", steps=(step,)), error=error
        )
        for task, error in zip(tasks, (None, "it broke"), strict=True)
    ]
    with Stage("evaluate", run / "eval", {}):
        file = run / "eval" / "greedy" / "rollouts.jsonl"
        stored_rollouts(file, [(task, 0) for task in tasks], lambda _: iter(rollouts))
        shown = text_of(run, RunWatcher(run).look())
    assert "greedy: 2 trajectories, mean return 0.250, 1 errors" in shown


def test_a_folder_without_a_run_is_an_error(tmp_path):
    _, error = agentrm("watch", str(tmp_path), "--once", ends=2)
    assert "is no folder of a run" in error
    _, error = agentrm("watch", str(tmp_path), "--every=0", ends=2)
    assert "--every must be within 0.1 and 3600" in error


def test_sparkline():
    assert sparkline([1.0]) == "▁"
    assert sparkline([0.0, 7.0]) == "▁█"
    assert len(sparkline(list(range(100)), width=10)) == 10


def test_a_budget_stops_a_search_that_resumes_with_the_same_trees(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("trees", "states", "eval"))
    command = ("explore", str(CONFIG), "--output", str(folder))
    _, line = agentrm(*command, "--budget.tokens=300", ends=0)
    assert "agentrm: budget.tokens is reached at explore: " in line
    assert "; run it again with a larger budget.tokens to resume" in line
    stopped = TreeStore.read(folder / "trees")
    whole = TreeStore.read(finished / "trees", finished=True)
    count = sum(len(tree.iterations) for tree in stopped.values())
    assert 0 < count < sum(len(tree.iterations) for tree in whole.values())
    out, _ = agentrm("watch", str(folder), "--once", ends=0)
    assert re.search(r"^explore +stopped", out, re.MULTILINE)
    _, line = agentrm(*command, "--budget.tokens=300", ends=0)  # nothing is left of it
    assert sum(len(t.iterations) for t in TreeStore.read(folder / "trees").values()) <= count + 16
    agentrm(*command, ends=0)
    resumed = TreeStore.read(folder / "trees", finished=True)
    # What was decoded before the stop is read again in another shape: last bits may differ.
    (a, log_probs), (b, others) = map(without_log_probs, (resumed, whole))
    assert a == b
    np.testing.assert_allclose(log_probs, others, atol=1e-4)
    out, _ = agentrm("watch", str(folder), "--once", ends=0)
    assert re.search(r"^explore +done", out, re.MULTILINE)


def test_other_labels_need_no_new_trees(finished, tmp_path):
    folder = tmp_path / "gamma"
    command = ("label", str(CONFIG), "--output", str(folder))
    _, error = agentrm(*command, "--label.gamma=0.5", ends=2)
    assert "explore has not ended yet" in error or "has not ended" in error
    out, _ = agentrm(*command, "--label.gamma=0.5", "--from", str(finished), ends=0)
    assert "explore: linked to" in out
    assert (folder / "trees").is_symlink()
    assert not (folder / "states").is_symlink()
    _, error = agentrm(*command, "--from", str(tmp_path / "nothing"), ends=2)
    assert "is no folder of a run" in error
    _, error = agentrm(
        "label", str(CONFIG), "--output", str(tmp_path / "other"), "--seed=5",
        "--from", str(finished), ends=2,
    )  # fmt: skip
    assert "was made with seed = 0, but it is now 5" in error
