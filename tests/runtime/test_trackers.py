"""Trackers: what reaches TensorBoard's files and a module with the interface of wandb."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import types

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.metrics import MetricWriter, read_metrics
from agentrm_jax.runtime.trackers import check_installed, open_tracker

TENSORBOARD = """
import pathlib, sys
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.trackers import open_tracker
folder = pathlib.Path(sys.argv[1])
tracker = open_tracker("tensorboard", folder, {})
assert not folder.exists()  # before the first row
for update in (10, 20):
    MetricWriter(folder / "metrics.jsonl", "sft", [tracker]).write(update, {"loss": 0.5})
"""


def test_tensorboard_has_all_rows_when_the_process_ends(tmp_path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra [tensorboard]")
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    subprocess.run([sys.executable, "-c", TENSORBOARD, str(tmp_path / "run")], check=True)
    [file] = (tmp_path / "run" / "tensorboard").iterdir()
    found, written = [], file.read_bytes()
    while written:  # a record: its length, a checksum, the event, a checksum
        (length,) = struct.unpack("<Q", written[:8])
        event = events.Event.FromString(written[12 : 12 + length])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        written = written[12 + length + 4 :]
    assert found == [(10, "sft/loss", 0.5), (20, "sft/loss", 0.5)]


class FakeRun:
    def __init__(self, **arguments) -> None:
        self.arguments, self.steps, self.rows = arguments, {}, []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.steps[name] = step_metric

    def log(self, row: dict) -> None:
        if len(self.rows) == 3:
            raise ConnectionError("no route\nto the host")
        self.rows.append(row)


@pytest.fixture
def fake_runs(monkeypatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**arguments) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return runs


def test_wandb_counts_each_stages_updates(fake_runs, tmp_path) -> None:
    tracker = open_tracker("wandb", tmp_path, {"seed": 3})
    tracker.write("sft", 10, {"loss": 2.0})
    tracker.write("train-rm", 5, {"loss": 1.0})
    [run] = fake_runs
    assert run.arguments["config"] == {"seed": 3}
    assert run.arguments["resume"] == "allow"
    assert run.steps == {"sft/*": "sft/update", "train-rm/*": "train-rm/update"}
    assert run.rows == [
        {"sft/update": 10, "sft/loss": 2.0},
        {"train-rm/update": 5, "train-rm/loss": 1.0},
    ]
    open_tracker("wandb", tmp_path, {}).write("sft", 20, {"loss": 1.0})
    assert fake_runs[1].arguments["id"] == run.arguments["id"]  # resumed: the same curves


def test_one_that_fails_is_left_out_and_said_once(fake_runs, tmp_path, capsys) -> None:
    tracker = open_tracker("wandb", tmp_path, {})
    writer = MetricWriter(tmp_path / "metrics.jsonl", "sft", [tracker])
    for update in range(1, 7):
        writer.write(update, {"loss": 1.0})
    assert len(fake_runs[0].rows) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wandb failed and is left out from here on")
    assert line.endswith("(ConnectionError: no route)")
    assert [row["update"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"trackers needs wandb for wandb: pip install 'agentrm-jax"
    ):
        check_installed(["wandb"])
