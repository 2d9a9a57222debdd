"""Runs of several processes: they learn the same, stop together and end together."""

from __future__ import annotations

import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from cli_cases import CONFIG, HERE

from agentrm_jax.data.trees import TreeStore
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.metrics import read_metrics

HEARTBEAT = 15
SFT = ("--sft.fit.batch_size=8", "--sft.fit.num_updates=6", "--sft.fit.metrics_every=1")
REWARD = ("--train_rm.fit.batch_size=8", "--train_rm.fit.metrics_every=1")


def start(count: int, devices: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """`agentrm` in so many processes, each with so many simulated devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = ("--mesh.data=2", "--mesh.fsdp=-1") if devices > 1 else ("--mesh.data=-1",)
    started = []
    for number in range(count):
        joined = (
            f"--distributed.coordinator=127.0.0.1:{port}",
            f"--distributed.num_processes={count}",
            f"--distributed.process_id={number}",
            f"--distributed.heartbeat_seconds={HEARTBEAT}",
        )
        command, *rest = arguments
        words = (command, str(CONFIG), *rest, *found, *(joined if count > 1 else ()))
        program = [sys.executable, str(HERE / "with_devices.py"), str(devices), *words]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True))
    return started


def end(processes: Sequence[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each."""
    try:
        written = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, written, strict=True)]


def agentrm_together(count: int, devices: int, *arguments: str) -> list[tuple[str, str]]:
    ended = end(start(count, devices, *arguments), timeout=900)
    assert [status for status, *_ in ended] == [0] * count, ended
    return [(out, err) for _, out, err in ended]


def without_gloo(text: str) -> str:
    """What is printed beside Gloo's words, which its threads write piece by piece, mixed."""
    pieces = (r"\[Gloo\] Rank", "is connected to", r"peer ranks\.")
    last = "Expected number of connected peer ranks is :"
    return re.sub("|".join((*pieces, last, r"\d+", r"\s+")), "", text)


def losses(folder: pathlib.Path, stage: str) -> list[tuple[int, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["update"], row["loss"]) for row in rows if row["stage"] == stage]


def begun(finished: pathlib.Path, folder: pathlib.Path, *without: str) -> pathlib.Path:
    """A copy of a run from which some of the stages' folders are missing."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("metrics.jsonl", ".lock"))
    for name in without:
        shutil.rmtree(folder / name)
    return folder


def only_experts(finished: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    return begun(finished, folder, "sft", "trees", "states", "samples", "reward", "eval")


def test_two_processes_learn_as_one_does(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    one, two = (only_experts(finished, tmp_path / name) for name in ("one", "two"))
    agentrm_together(1, 8, "sft", "--output", str(one), *SFT)
    (printed, _), (silent, said) = agentrm_together(2, 4, "sft", "--output", str(two), *SFT)
    assert "sft:" in printed
    assert not without_gloo(silent)
    assert "sft" not in said  # no progress beside the first process's
    assert [update for update, _ in losses(two, "sft")] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(losses(one, "sft"), losses(two, "sft"), strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert sorted(p.name for p in (two / "sft").iterdir()) == sorted(
        p.name for p in (one / "sft").iterdir()
    )


def nodes(folder: pathlib.Path) -> dict[str, list[tuple]]:
    """What the iterations of each tree found."""
    return {
        name: [
            (i.path, i.outcome, [(n.node, n.parent, n.multiplicity, n.step.reply) for n in i.nodes])
            for i in tree.iterations
        ]
        for name, tree in TreeStore.read(folder / "trees").items()
    }


def results(folder: pathlib.Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key != "wall_seconds"}
        for name in ("greedy", "best_of_n", "beam", "beam_random")
        for row in read_json(folder / "eval" / name / "results.json")
    ]


def test_two_processes_explore_and_evaluate_as_one_does(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """One that was killed when a tree was begun goes on with two."""
    folder = begun(finished, tmp_path / "two", "eval")
    trees = folder / "trees"
    (trees / "stage.json").rename(trees / "seconds.json")
    lines = (trees / "trees.jsonl").read_bytes().splitlines(keepends=True)
    (trees / "trees.jsonl").write_bytes(b"".join(lines[:9]))
    (trees / "trees.part1.jsonl").write_bytes(b"".join(lines[5:14]) + lines[14][:40])
    agentrm_together(2, 1, "explore", "--output", str(folder))
    assert [path.name for path in sorted(trees.iterdir())] == ["stage.json", "trees.jsonl"]
    assert nodes(folder) == nodes(finished)
    agentrm_together(2, 1, "evaluate", "--output", str(folder))
    assert results(folder) == results(finished)
    one, two = (f / "eval" / "best_of_n" for f in (finished, folder))
    assert read_json(two / "by_n.json") == read_json(one / "by_n.json")
    scores = zip(read_json(one / "scores.json"), read_json(two / "scores.json"), strict=True)
    assert all(b == pytest.approx(a, abs=1e-5) for a, b in scores)


@pytest.mark.slow
def test_two_processes_go_through_a_whole_run(tmp_path: pathlib.Path) -> None:
    agentrm_together(2, 1, "run", "--output", str(tmp_path / "run"), "--sft.fit.batch_size=4")
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_four_processes_learn_as_one_does(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    one, four = (only_experts(finished, tmp_path / name) for name in ("one", "four"))
    agentrm_together(1, 8, "sft", "--output", str(one), *SFT)
    agentrm_together(4, 2, "sft", "--output", str(four), *SFT)
    for a, b in zip(losses(one, "sft"), losses(four, "sft"), strict=True):
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_reward_models_are_trained_alike(
    finished: pathlib.Path, tmp_path: pathlib.Path, count: int
) -> None:
    """Labels, which the first process takes while the others wait, and training on them."""
    one, several = (
        begun(finished, tmp_path / name, "states", "reward", "eval") for name in ("one", "several")
    )
    for folder, processes in ((one, 1), (several, count)):
        output = ("--output", str(folder))
        agentrm_together(processes, 8 // processes, "label", *output)
        agentrm_together(processes, 8 // processes, "train-rm", *output, *REWARD)
    for a, b in zip(losses(one, "train-rm"), losses(several, "train-rm"), strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def wait_for_updates(folder: pathlib.Path, behind: int) -> None:
    """Waits until training has done more updates than these."""
    deadline = time.monotonic() + 300
    while not [update for update, _ in losses(folder, "sft") if update > behind]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


ENDLESS = (*SFT[:1], "--sft.fit.num_updates=1000000", "--sft.fit.checkpoint_every=100000")


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_update(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = only_experts(finished, tmp_path / "run")
    stopped = 0
    for told in (1, 0):
        processes = start(2, 4, "sft", "--output", str(folder), *ENDLESS)
        wait_for_updates(folder, stopped)
        processes[told].send_signal(signal.SIGTERM)
        ended = end(processes, timeout=120)
        assert [status for status, *_ in ended] == [0, 0], ended
        updates = [re.search(r"stopped at update (\d+) of", err) for *_, err in ended]
        assert updates[0] is not None
        assert updates[1] is not None
        assert updates[0][1] == updates[1][1]
        assert int(updates[0][1]) > stopped
        stopped = int(updates[0][1])
        assert (folder / "sft" / "checkpoints" / str(stopped)).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_ends(
    finished: pathlib.Path, tmp_path: pathlib.Path, killed: int
) -> None:
    folder = only_experts(finished, tmp_path / "run")
    processes = start(2, 4, "sft", "--output", str(folder), *ENDLESS)
    wait_for_updates(folder, 0)
    processes[killed].kill()
    ended = end(processes, timeout=2 * HEARTBEAT + 30)
    status, _, err = ended[1 - killed]
    assert status not in (0, -signal.SIGKILL), ended
    # JAX itself may be quicker to end the other, and says so.
    ours, theirs = r"^agentrm: error: another process ended, .* checkpoint$", "another task died"
    assert re.search(f"{ours}|{theirs}", err, re.MULTILINE), err


@pytest.mark.slow
def test_a_mistake_ends_all(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One that only the first process comes upon, and one that all do."""
    folder = only_experts(finished, tmp_path / "run")
    (folder / "experts" / "stage.json").unlink()
    ended = end(start(2, 4, "sft", "--output", str(folder), *SFT), timeout=120)
    assert [status for status, *_ in ended] == [2, 2], ended
    assert all("agentrm: error: " in err and "experts" in err for *_, err in ended)
    ended = end(start(2, 4, "explore", "--output", str(folder), "--mesh.fsdp=4"), timeout=120)
    assert [status for status, *_ in ended] == [2, 2], ended
    assert all("experts: holds files, but no record" in err for *_, err in ended)
