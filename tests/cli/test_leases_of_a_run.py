"""Processes that share a run by leases: killed, frozen and thawed, with clocks that disagree."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from cli_cases import CONFIG, agentrm, without_log_probs
from walker_cases import wait_until, write_config

from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.runtime.json_files import read_json

LEASES = ("--leases.enabled=true", "--leases.expire_seconds=2")
EVALUATE = ("--rewards=[shortness]",)


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    """A configuration whose policy needs no model, and waits for the file `go` next to it."""
    return write_config(tmp_path)


@pytest.fixture
def start(
    config: pathlib.Path, tmp_path: pathlib.Path
) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `agentrm` on one run folder; ends what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def begin(command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "agentrm_jax.cli.main", command, str(config)]
        process = subprocess.Popen(
            [*program, "--output", str(tmp_path / "run"), *arguments],
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


def works(run: pathlib.Path, process: subprocess.Popen) -> bool:
    """Whether a process has stored an iteration of a tree that is not finished."""
    files = (run / "trees" / ".leases" / "trees.jsonl").glob(f"*-{process.pid}-*.work")
    return any(b'"iteration"' in path.read_bytes() for path in files if path.exists())


def workers(run: pathlib.Path) -> list[pathlib.Path]:
    return list((run / "trees" / ".leases" / "workers").glob("[!.]*"))


def alone(config: pathlib.Path, *arguments: str) -> pathlib.Path:
    """The folder of a run of one process."""
    config.with_name("go").touch()
    folder = config.with_name("alone")
    agentrm(*arguments[:1], str(config), "--output", str(folder), *arguments[1:], ends=0)
    return folder


def test_one_is_killed_one_is_frozen_and_thawed_and_no_tree_is_lost_or_doubled(
    start, config, tmp_path
) -> None:
    """The clock of one is an hour late."""
    run, leases = tmp_path / "run", tmp_path / "run" / "trees" / ".leases"
    sound, killed, frozen = (
        start("explore", *LEASES, CLOCK=clock, SECONDS_OF_A_TURN=seconds)
        for clock, seconds in (("-3600", "0.02"), ("0", "0.3"), ("0", "0.3"))
    )
    wait_until(lambda: len(workers(run)) == 3, sound, killed, frozen)
    config.with_name("go").touch()
    wait_until(lambda: works(run, killed) and works(run, frozen), sound, killed, frozen)
    killed.send_signal(signal.SIGKILL)
    frozen.send_signal(signal.SIGSTOP)
    taken = {path.name.partition(".")[0] for path in leases.rglob(f"*-{frozen.pid}-*.work")}
    assert taken
    status, _ = agentrm("status", str(run), ends=0)
    assert f"{killed.pid}" in status
    assert "trees.jsonl: " in status
    assert "of 16 tasks recorded" in status
    _, refused = agentrm("merge", str(run), ends=2)
    assert "another process works in this folder" in refused
    out, _ = sound.communicate(timeout=400)
    assert sound.returncode == 0, out
    frozen.send_signal(signal.SIGCONT)
    out, _ = frozen.communicate(timeout=400)
    assert frozen.returncode == 0, out
    assert "explore: ended (trees 16, failed_trees 0" in out
    assert killed.wait() == -signal.SIGKILL

    names = {path.name for path in (run / "trees").iterdir() if path.suffix != ".tmp"}
    assert names == {"stage.json", "trees.jsonl"}  # and what the killed one was writing
    merged, _ = agentrm("merge", str(run), ends=0)
    assert "trees.jsonl: 16 of 16 tasks complete" in merged
    expected = TreeStore.read(alone(config, "explore") / "trees", finished=True)
    assert TreeStore.read(run / "trees", finished=True) == expected


def test_others_finish_a_run_and_a_process_alone_resumes_what_they_left(
    start, config, tmp_path
) -> None:
    """All that share it end; one process resumes from their records and from unfinished trees."""
    run = tmp_path / "run"
    config.with_name("go").touch()
    first = start("explore", *LEASES, SECONDS_OF_A_TURN="0.3")
    records = run / "trees" / ".leases" / "trees.jsonl"
    wait_until(lambda: list(records.glob("*.record")) and works(run, first), first)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=200)
    assert first.returncode == 0, out
    assert "stopped by SIGTERM" in out
    status = json.loads(agentrm("status", str(run), "--json", ends=0)[0])
    [stage] = status["stages"]
    assert [worker["state"] for worker in stage["workers"]] == ["ended"]
    [trees] = [each for each in stage["lists"] if each["name"] == "trees.jsonl"]
    assert trees["tasks"] == 16
    assert 0 < trees["recorded"] < 16
    merged, _ = agentrm("merge", str(run), ends=1)
    assert "missing" in merged
    out, _ = agentrm("explore", str(config), "--output", str(run), ends=0)
    assert "trees 16, failed_trees 0" in out
    expected = TreeStore.read(alone(config, "explore") / "trees", finished=True)
    assert TreeStore.read(run / "trees", finished=True) == expected


def rollouts(folder: pathlib.Path, method: str) -> dict[tuple[str, int], tuple[str, ...]]:
    """The replies of each trajectory of a method."""
    return {
        (each.trajectory.task.task_id, each.sample): tuple(s.reply for s in each.trajectory.steps)
        for each in read_rollouts(folder / "eval" / method / "rollouts.jsonl", finished=True)
    }


def results(folder: pathlib.Path, methods: tuple[str, ...]) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key != "wall_seconds"}
        for name in methods
        for row in read_json(folder / "eval" / name / "results.json")
    ]


@pytest.mark.slow
def test_two_evaluate_as_one_does_though_one_is_killed(start, config, tmp_path) -> None:
    run, methods = tmp_path / "run", ("greedy", "best_of_n")
    config.with_name("go").touch()
    killed = start("evaluate", *EVALUATE, *LEASES, SECONDS_OF_A_TURN="0.3")
    greedy = run / "eval" / ".leases" / "best_of_n%2Frollouts.jsonl"
    wait_until(lambda: list(greedy.glob("*.record")), killed)
    killed.send_signal(signal.SIGKILL)
    both = [start("evaluate", *EVALUATE, *LEASES) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, out
    expected = alone(config, "evaluate", *EVALUATE)
    for method in methods:
        assert rollouts(run, method) == rollouts(expected, method)
    assert results(run, methods) == results(expected, methods)


@pytest.mark.slow
def test_two_processes_with_leases_go_through_a_whole_run(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The stages that they do not share are done by one of them."""
    folder = tmp_path / "run"
    ignored = shutil.ignore_patterns("sft", "trees", "states", "samples", "reward", "eval", ".lock")
    shutil.copytree(finished, folder, ignore=ignored)
    program = [sys.executable, "-m", "agentrm_jax.cli.main", "run", str(CONFIG)]
    started = [
        subprocess.Popen(
            [*program, "--output", str(folder), *LEASES],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        out, _ = process.communicate(timeout=1800)
        assert process.returncode == 0, out
    assert (folder / "report.html").exists()
    assert not list(folder.rglob(".leases"))
    (a, _), (b, _) = (
        without_log_probs(TreeStore.read(each / "trees", finished=True))
        for each in (finished, folder)
    )
    assert a == b
    methods = ("greedy", "best_of_n", "beam", "beam_random")
    assert results(folder, methods) == results(finished, methods)
