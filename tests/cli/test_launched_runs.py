"""Runs that `agentrm launch` starts: here, in Ray actors and under SLURM, next to one process."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import slurm_cluster
from cli_cases import CONFIG, agentrm, without_log_probs
from slurm_cluster import start_again, state, wait_until

from agentrm_jax.data.trees import TreeStore
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.metrics import read_metrics

METHODS = ("greedy", "best_of_n", "beam", "beam_random")
PROGRAM = f"{sys.executable} -m agentrm_jax.cli.main"


def launch(kind: str, folder: pathlib.Path, *options: str, program: str = PROGRAM) -> str:
    words = (kind, str(CONFIG), "--output", str(folder), *options)
    return agentrm("launch", *words, f"--program={program}", ends=0)[0]


def begun(finished: pathlib.Path, folder: pathlib.Path, *without: str) -> pathlib.Path:
    """A copy of a run from which some of the stages' folders are missing."""
    ignored = shutil.ignore_patterns("metrics.jsonl", ".lock", "report.*", "results.json", *without)
    return shutil.copytree(finished, folder, ignore=ignored)


def results(folder: pathlib.Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key != "wall_seconds"}
        for name in METHODS
        for row in read_json(folder / "eval" / name / "results.json")
    ]


def check_trees(folder: pathlib.Path, expected: pathlib.Path) -> None:
    (a, logs_a), (b, logs_b) = (
        without_log_probs(TreeStore.read(each / "trees", finished=True))
        for each in (expected, folder)
    )
    assert a == b
    assert logs_a == pytest.approx(logs_b, abs=1e-4)


def test_a_run_is_resumed_on_this_machine(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = begun(finished, tmp_path / "run", "eval")
    out = launch("local", folder)
    assert out.count("done before") == 7
    assert results(folder) == results(finished)
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_two_workers_have_the_results_of_one_process(
    kind: str, finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    if kind == "ray":
        pytest.importorskip("ray", reason="needs Ray: pip install 'agentrm-jax[ray]'")
    folder = begun(finished, tmp_path / "run", "trees", "eval")
    launch(kind, folder, "--hosts=2", "--stage=explore")
    check_trees(folder, finished)
    launch(kind, folder, "--hosts=2", "--stage=evaluate")
    assert results(folder) == results(finished)
    assert not list(folder.rglob(".leases"))


@pytest.mark.slow
def test_the_command_of_a_killed_ray_actor_ends_and_another_starts(tmp_path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'agentrm-jax[ray]'")
    log, actor = tmp_path / "log", tmp_path / "actor"
    script = (
        f"trap 'echo stopped >>{log}; exit 0' TERM\n"
        f"echo started >>{log}\n"
        f'[ "$(grep -c started {log})" = 1 ] || exit 0\n'
        f"echo $PPID >{actor}.part && mv {actor}.part {actor}\n"
        "sleep 600 & wait\n"
    )
    words = ["--place=ray", "--count=1", "--", "bash", "-c", script]
    process = subprocess.Popen([sys.executable, "-m", "agentrm_jax.launch.workers", *words])
    try:
        wait_until(actor.exists)
        os.kill(int(actor.read_text()), signal.SIGKILL)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
    assert sorted(log.read_text().split()) == ["started", "started", "stopped"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of one node."""
    yield from slurm_cluster.started(tmp_path_factory.mktemp("slurm"))


WORKER = """#!/bin/bash
# Ends as the next line of the file `plan` says.
echo start >>"$0.log"
case $(sed -n "$(grep -c start "$0.log")p" "$0.plan") in
  hang) trap 'echo stopped >>"$0.log"; exit 0' TERM; sleep 600 & wait ;;
  die) exit 1 ;;
  wrong) exit 2 ;;
esac
"""


def job_of(printed: str) -> str:
    match = re.search(r"Submitted batch job (\d+)", printed)
    assert match is not None, printed
    return match[1]


@pytest.mark.slow
def test_slurm_queues_a_job_again_unless_it_is_finished_wrong_or_cancelled(
    slurm, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    log, plan = tmp_path / "worker.log", tmp_path / "worker.plan"

    def starts() -> int:
        return log.read_text().count("start\n") if log.exists() else 0

    def submit(*ends: str) -> str:
        log.unlink(missing_ok=True)
        plan.write_text("\n".join(ends) + "\n")
        return job_of(launch("slurm", tmp_path / "run", "--stage=explore", program=str(worker)))

    job = submit("die", "hang", "finish")
    start_again(job)
    wait_until(lambda: starts() == 2)
    slurm_cluster.run("scancel", "--signal=TERM", "--batch", job)  # as before the time limit
    wait_until(lambda: "stopped" in log.read_text())
    start_again(job)
    wait_until(lambda: state(job) == "COMPLETED")
    assert starts() == 3
    job = submit("wrong")
    wait_until(lambda: state(job) == "FAILED")
    assert starts() == 1
    job = submit("hang", "hang")
    wait_until(lambda: starts() == 1)
    slurm_cluster.run("scancel", job)
    wait_until(lambda: state(job) == "CANCELLED")
    assert log.read_text().split() == ["start", "stopped"]


@pytest.mark.slow
def test_slurm_trains_and_searches_as_one_process_does(
    slurm, finished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
) -> None:
    """Two joined tasks of one job, then an array of two jobs with leases."""
    monkeypatch.chdir(tmp_path)
    shutil.rmtree((folder := begun(finished, tmp_path / "run", "eval", "samples")) / "sft")
    shutil.rmtree(folder / "trees")
    job = job_of(launch("slurm", folder, "--stage=sft", "--hosts=2", "--mesh.data=-1"))
    wait_until(lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), 1800)
    printed = (tmp_path / f"slurm-{job}.out").read_text()
    assert state(job) == "COMPLETED", printed

    def losses(run: pathlib.Path) -> list[float]:
        rows = read_metrics(run / "metrics.jsonl")
        return [row["loss"] for row in rows if row["stage"] == "sft"]

    assert losses(folder) == pytest.approx(losses(finished), rel=1e-3)
    shutil.rmtree(folder / "sft")
    shutil.copytree(finished / "sft", folder / "sft")  # trees follow from the bits of the weights
    job = job_of(launch("slurm", folder, "--stage=explore", "--hosts=2"))
    done = {"COMPLETED"}
    wait_until(lambda: set(state(job).split()) <= done | {"FAILED"}, 1800)
    assert set(state(job).split()) == done
    check_trees(folder, finished)
