"""Seconds, tokens and rates of each stage of the quickstart.

    python -m benchmarks.quickstart [--tiny] [--warm] [--output DIR]

Runs the pipeline in a process of its own. The compilation cache is a new folder unless --warm asks
for the user's. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quickstart", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="configs/tiny.yaml, under a minute")
    parser.add_argument("--warm", action="store_true", help="use the user's compilation cache")
    parser.add_argument("--output", type=pathlib.Path, help="keep the run in this folder")
    given = parser.parse_args()
    name = "tiny" if given.tiny else "quickstart"
    with tempfile.TemporaryDirectory() as temporary:
        output = given.output or pathlib.Path(temporary) / "run"
        environment = dict(os.environ)
        if not given.warm:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(temporary) / "xla")
        command = [sys.executable, "-m", "agentrm_jax.cli.main", "run"]
        command += [str(ROOT / "configs" / f"{name}.yaml"), "--output", str(output)]
        began = time.monotonic()
        subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
        seconds = time.monotonic() - began
        found = measured(output, seconds)
    for row in found["stages"]:
        rates = ", ".join(f"{k} {v:,.0f}" for k, v in row.items() if k.endswith("_per_second"))
        print(f"{row['stage']:>10} {row['seconds']:8.1f} s, {row['compile_seconds']:6.1f} s of it "
              f"compiling; {rates}")  # fmt: skip
    print(json.dumps({"benchmark": "quickstart", "config": name, "warm": given.warm, **found}))


def measured(run: pathlib.Path, seconds: float) -> dict[str, Any]:
    """The figures of a finished run."""
    report = json.loads((run / "report.json").read_text())
    versions = json.loads((run / "versions.json").read_text())
    stages = [_stage(stage) for stage in report["stages"]]
    means = {
        row["method"] + (f"_{row['reward_model']}" if row["reward_model"] else ""): row[
            "score_mean"
        ]
        for row in report["results"]
        if row["task"] == "all" and row["split"] == "all"
    }
    return {
        "seconds": round(seconds, 1),
        "stages": stages,
        "scores": means,
        "hardware": {k: versions[k] for k in ("device_kind", "device_count", "cpu_count")},
        "jax": versions["packages"]["jax"],
    }


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a stage and what it got through; rates leave compilation out."""
    summary, seconds = stage["summary"], stage["seconds"]
    compiling = summary.get("compile_seconds", 0.0)
    row = {"stage": stage["stage"], "seconds": seconds, "compile_seconds": compiling}
    working = max(seconds - compiling, 1e-9)
    for key in ("tokens_decoded", "tokens_read", "iterations", "env_steps"):
        if key in summary:
            row[key] = summary[key]
            row[f"{key}_per_second"] = summary[key] / working
    if "tokens_per_second" in summary:
        row["tokens_per_second"] = summary["tokens_per_second"]
    return row


if __name__ == "__main__":
    main()
