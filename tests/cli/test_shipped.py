"""What lies beside the package works: the script of stages and the benchmark."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from cli_cases import CONFIG, HERE

ROOT = HERE.parents[1]


def test_the_script_goes_through_all_stages(finished: pathlib.Path, tmp_path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "eval")
    for name in ("report.html", "report.json", "results.json"):
        (copy / name).unlink()
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(ROOT / "launch" / "local.sh"), str(CONFIG), str(copy)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 5
    assert (copy / "report.html").stat().st_size > 0
    assert (copy / "results.json").stat().st_size > 0


FAKE = """#!/usr/bin/env bash
# gcloud: the command that a worker is to run; srun: what a task is to run
while [ $# -gt 0 ]; do
  case $1 in --command) exec bash -c "$2" ;; .venv/*) exec "$HOME/agentrm_jax/$1" "${@:2}" ;; esac
  shift
done
"""


@pytest.mark.parametrize(("script", "tool"), [("pod.sh", "gcloud"), ("slurm.sh", "srun")])
def test_scripts_for_several_hosts_pass_on_what_they_are_given(script, tool, tmp_path) -> None:
    own = tmp_path / "agentrm_jax" / ".venv" / "bin" / "agentrm"
    own.parent.mkdir(parents=True)
    for path, text in (
        (tmp_path / tool, FAKE),
        (own, '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'),
    ):
        path.write_text(text)
        path.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "TPU": "t", "ZONE": "z"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "launch" / script), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )

    done = run("sft", "a b.yaml", "/shared/out", "--seed=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "sft", "a b.yaml", "--output", "/shared/out", "--seed=1", "--distributed.coordinator=auto"
    ]  # fmt: skip
    short = run("sft")
    assert short.returncode == 2
    assert "STAGE CONFIG OUTPUT" in short.stderr


def test_the_benchmark_reads_a_run(finished: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "benchmarks/quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.measured(finished, 12.0)
    assert found["seconds"] == 12.0
    by_name = {stage["stage"]: stage for stage in found["stages"]}
    assert by_name["sft"]["tokens_per_second"] > 0
    assert by_name["explore"]["iterations"] == 64
    assert by_name["explore"]["tokens_decoded_per_second"] > 0
    assert {"greedy", "best_of_n_explicit", "beam_explicit"} <= set(found["scores"])
