"""The benchmark next to the package reads a run."""

from __future__ import annotations

import importlib.util
import pathlib

from cli_cases import HERE

ROOT = HERE.parents[1]


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
