"""Hosts with a folder each share a run by leases in a bucket; one of them is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from cli_cases import agentrm
from walker_cases import wait_until, write_config

from agentrm_jax.cli.main import main
from agentrm_jax.core.records import Task
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.pipeline.merge_shards import merge_shards
from agentrm_jax.pipeline.plugins import import_plugin
from agentrm_jax.pipeline.run_status import run_status
from agentrm_jax.pipeline.status_lines import status_lines
from agentrm_jax.runtime.buckets import open_bucket
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import FileStore
from agentrm_jax.runtime.object_store import ObjectProcesses, ObjectStore

BUCKET = pathlib.Path(__file__).parents[1] / "runtime" / "bucket_cases.py"
Start = Callable[..., subprocess.Popen]


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    path = write_config(tmp_path, str(BUCKET))
    path.with_name("go").touch()
    return path


def leases(tmp_path: pathlib.Path) -> list[str]:
    url = f"diskbucket:/{tmp_path / 'bucket'}"
    return [f"--leases.store={url}", "--leases.enabled=true", "--leases.expire_seconds=2"]


@pytest.fixture
def start(config: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Start]:
    """Starts `agentrm` with a folder of its own; ends what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def begin(command: str, folder: str, *arguments: str, **environment: str) -> subprocess.Popen:
        program = [sys.executable, "-m", "agentrm_jax.cli.main", command, str(config)]
        process = subprocess.Popen(
            [*program, "--output", str(tmp_path / folder), *leases(tmp_path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def begun(folder: pathlib.Path) -> bool:
    """Whether a host has stored an iteration of a tree that is not finished."""
    files = (folder / "trees" / ".leases" / "trees.jsonl").glob("*.work")
    return any(b'"iteration"' in path.read_bytes() for path in files if path.exists())


def ended(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


FEW = "--explore.num_tasks=8"


def test_one_of_two_is_killed_and_all_hosts_end_with_the_trees_of_one(
    start: Start, config: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    killed, sound = (
        start("explore", name, FEW, SECONDS_OF_A_TURN=seconds)
        for name, seconds in (("x", "0.3"), ("y", "0.1"))
    )
    alone = ["explore", str(config), "--output", str(tmp_path / "alone"), FEW]
    agentrm(*alone, ends=0)
    wait_until(lambda: begun(tmp_path / "x"), killed, sound)
    killed.send_signal(signal.SIGKILL)
    back = start("explore", "x", FEW)
    assert "trees 8, failed_trees 0" in ended(sound)
    assert "(trees 8, failed_trees 0" in ended(back)

    assert killed.wait() == -signal.SIGKILL
    records = list((tmp_path / "bucket" / "explore" / "trees.jsonl").glob("*.record"))
    assert len(records) == 8
    trees = files_of(tmp_path / "y" / "trees")
    assert trees.keys() == {"stage.json", "trees.jsonl"}
    assert trees == files_of(tmp_path / "x" / "trees")
    expected = TreeStore.read(tmp_path / "alone" / "trees", finished=True)
    assert TreeStore.read(tmp_path / "y" / "trees", finished=True) == expected


def test_bad_stores_are_refused_before_anything_is_written(config, tmp_path, capsys) -> None:
    def refused(*arguments: str) -> str:
        assert main([*command, *arguments]) == 2
        return capsys.readouterr().err

    command = ["explore", str(config), "--output", str(tmp_path / "run")]
    for store, message in (
        ("diskbucket://b", "leases.store needs leases.enabled: true"),
        (f"overwriting:/{tmp_path}", "the store has no conditional create"),
    ):
        enabled = f"--leases.enabled={json.dumps('needs' not in message)}"
        shown = refused(f"--leases.store={store}", enabled)
        assert message in shown
        assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_status_and_merge_read_the_bucket(tmp_path: pathlib.Path) -> None:
    import_plugin(str(BUCKET))
    url = f"diskbucket:/{tmp_path / 'bucket'}"
    tasks = [Task(environment="maze", task_id=f"maze/train/{n}", max_steps=6) for n in range(4)]
    groups, lists = [], []
    for name in "xy":
        folder = tmp_path / name / "trees"
        folder.mkdir(parents=True)
        (folder.parent / "config.resolved.yaml").write_text(f"leases: {{store: '{url}'}}")
        (folder / "seconds.json").write_text("{}")
        store = ObjectStore(open_bucket(url), "explore", FileStore(folder / ".leases"))
        groups.append(ObjectProcesses(store, LeasesConfig(enabled=True, store=url)))
        lists.append(groups[-1].tasks("trees.jsonl", [task.task_id for task in tasks]))
    x, y = lists
    [done] = x.take(1)
    with contextlib.closing(TreeStore(x.work_path(done).parent, x.work_path(done).name)) as tree:
        tree.begin(tasks[done.number], "You are in a maze.")
        tree.finish(done.key, "its root was closed")
    assert x.record_work(done)
    y.look()
    held = y.take(1)
    groups[0].close()

    status = run_status(tmp_path / "x")
    [stage] = status.stages
    [found] = stage.lists
    assert (stage.name, found.name) == ("explore", "trees.jsonl")
    assert (found.tasks, found.recorded, found.free) == (4, 1, 2)
    [lease] = found.leases
    assert (lease.record.task, lease.stale) == (held[0].key, False)
    assert lease.taken_seconds < 60
    assert sorted(worker.state for worker in stage.workers) == ["alive", "ended"]
    assert any("1 of 4 tasks recorded, 1 held" in line for line in status_lines(status))
    [merged] = merge_shards(tmp_path / "y")  # x recorded the tree
    assert (merged.tasks, merged.complete, len(merged.missing)) == (4, 1, 3)
    groups[1].close()


@pytest.mark.slow
def test_two_hosts_evaluate_as_one_does(start: Start, config, tmp_path) -> None:
    rewards = "--rewards=[shortness]"
    for process in [start("run", name, rewards) for name in "xy"]:
        ended(process)
    agentrm("run", str(config), "--output", str(tmp_path / "alone"), rewards, ends=0)
    for method in ("greedy", "best_of_n"):
        found = [
            {
                (each.trajectory.task.task_id, each.sample): tuple(
                    step.reply for step in each.trajectory.steps
                )
                for each in read_rollouts(
                    tmp_path / name / "eval" / method / "rollouts.jsonl", finished=True
                )
            }
            for name in ("x", "y", "alone")
        ]
        assert found[0] == found[1] == found[2]
    assert files_of(tmp_path / "x" / "eval") == files_of(tmp_path / "y" / "eval")
    assert (tmp_path / "x" / "report.html").exists()
    assert (tmp_path / "y" / "report.html").exists()
