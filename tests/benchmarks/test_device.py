"""The run for accelerators in its tiny form: its record, time budget and failures."""

from __future__ import annotations

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

from benchmarks import device, device_parts

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = tuple(device.EXPECTED)


def tiny(path, *kinds: str, seconds: float = 1e6, **fields) -> dict:
    """The parts of a run in this process."""
    of = device_parts.Device(
        tiny=True, rounds=1, threads=1, memory=None, engine_backends=("xla",),
        fit_backends=("xla",), **fields,
    )  # fmt: skip
    kept: list[list[str]] = []
    found = device.run(of, kinds, seconds, lambda found: kept.append(list(found)))
    assert kept == [list(found)[:n] for n in range(1, len(found) + 1)]  # after every part
    return found


def test_figures_of_engines(tmp_path):
    found = tiny(tmp_path, "ceilings", "decode", "score")
    assert [row["status"] for row in found.values()] == ["measured"] * 3
    assert min(found["ceilings"][key] for key in ("flops_per_second", "bytes_per_second")) > 0
    for name in ("decode 5", "score"):
        assert found[name]["share_of_copy"] > 0
        assert found[name]["share_of_product"] > 0
    assert found["decode 5"]["tokens_per_second"] > 0
    assert found["score"]["candidates"] == 4


def test_parts_that_do_not_fit_are_skipped(tmp_path):
    found = tiny(tmp_path, *KINDS, seconds=0)
    assert {row["status"] for row in found.values()} == {"skipped"}
    assert {name.split()[0] for name in found} == set(KINDS)
    assert found["ceilings"]["reason"] == "needs about 0 s, and 0 s are left"


def test_a_failed_part_does_not_lose_the_others(tmp_path, monkeypatch):
    def refuse(device):
        raise RuntimeError("out of memory\nand a long trace")

    monkeypatch.setattr(device_parts, "prefill", refuse)
    found = tiny(tmp_path, "prefill", "ceilings")
    assert found["prefill"]["status"] == "failed"
    assert found["prefill"]["reason"] == "RuntimeError: out of memory"
    assert found["ceilings"]["status"] == "measured"


def test_layers_that_fit(tmp_path):
    def layers(memory: int, per_weight: float) -> int:
        of = device_parts.Device(
            tiny=False, rounds=1, threads=1, memory=memory, engine_backends=("xla",),
            fit_backends=("xla",),
        )  # fmt: skip
        return of.fitting(of.shape, per_weight).num_layers

    assert layers(139 * 2**30, 2) == 32
    assert 1 < layers(16 * 2**30, 2) < 32
    assert 1 < layers(139 * 2**30, 18) < 32
    assert layers(2**30, 18) == 1


def test_rows_hold_the_same_states():
    rows = {
        packing: device_parts.training_rows(device_parts.models.SHAPES["tiny"], packing, True)
        for packing in ("trees", "paths")
    }
    assert len(rows["trees"]) == 1 < len(rows["paths"])
    labels = {packing: int((own.weights > 0).sum()) for packing, own in rows.items()}
    assert labels == {"trees": 64, "paths": 64}  # both ends of 32 states


def test_tables_of_the_page():
    """Of a made-up record; without one, or of a CPU, nothing is shown."""
    page = runpy.run_path(str(ROOT / "docs" / "results" / "render.py"))
    shown, not_yet = page["device_tables"], "Not measured yet."
    assert shown(None) == not_yet
    shares = {"share_of_copy": 0.7, "share_of_product": 0.1}
    backend = {"error": 1e-3, "milliseconds": 2.5}
    engine = {"tokens": 9, "near_ties": 1, "unexplained": 0, "log_prob_error": 1e-4}
    record = {
        "tiny": False, "platform": "gpu", "dtype": "bfloat16",
        "hardware": {"device": "A GPU", "jax": "1.2"},
        "parts": {
            "ceilings": {"status": "measured", "bytes_per_second": 4e12, "flops_per_second": 8e14},
            "attention": {"status": "measured", "trees": {"backends": {"xla": backend}},
                          "paths": {"backends": {"cudnn": {"error": "no cuDNN"}}}},
            "decode 40": {"status": "measured", "layers": 32, "attention": "triton",
                          "tokens_per_second": 5000.0, **shares},
            "prefill": {"status": "failed", "reason": "out of memory"},
            "engines": {"status": "measured",
                        "float32": {"replies": 8, "triton": {**engine, "score_error": 1e-5}}},
        },
    }  # fmt: skip
    lines = shown(record).splitlines()
    assert lines[0].startswith("A GPU, jax 1.2, bfloat16. A large copy moves 4,000 GB/s")
    for line in (
        "| decode 40 | 32 | triton | 5,000 tokens a second | 0.70 | 0.10 |",
        "| prefill | | | failed: out of memory | | |",
        "| xla | trees | 1.0e-03 | 2.50 |",
        "| cudnn | paths | no cuDNN |  |",
        "| triton | float32 | 9 | 1 | 0 | 1.0e-04 | 1.0e-05 |",
    ):
        assert line in lines
    assert shown({**record, "platform": "cpu"}) == shown({**record, "tiny": True}) == not_yet


@pytest.mark.slow
def test_a_whole_tiny_run(tmp_path):
    output = tmp_path / "device.json"
    command = [sys.executable, "-m", "benchmarks.device", "--tiny", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(output.read_text()) == found
    assert {name.split()[0] for name in found["parts"]} == set(KINDS)
    for name, row in found["parts"].items():
        assert row["status"] == "measured", (name, row)
    for packing in ("trees", "paths"):
        for backend in found["parts"]["attention"][packing]["backends"].values():
            assert backend["error"] < 1e-4
    own = found["parts"]["engines"]["float32"]["xla"]
    assert own["tokens"] == own["likeliest"] + own["near_ties"] == 32
    assert own["log_prob_error"] < 1e-4
    assert own["score_error"] < 1e-4
    page = runpy.run_path(str(ROOT / "docs" / "results" / "render.py"))
    assert page["device_tables"](found) == "Not measured yet."
