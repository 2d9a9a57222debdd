"""Each benchmark in its tiny form: its last line, and that its sides agree. No times are tested."""

from __future__ import annotations

import importlib
import json
import math
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDS_TORCH = ("decode", "score", "servers", "train_reward")


def last_line(name: str, *arguments: str) -> dict:
    """The benchmark in a process of its own; what its last line says."""
    if name in NEEDS_TORCH and "--model" not in arguments:
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--rounds", "1", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == name
    assert found["hardware"]["device"]
    return found


def run(name: str, *arguments: str) -> dict:
    """The same for one that compares."""
    found = last_line(name, *arguments)
    ratios = [value for key, value in found.items() if key.startswith("ratio_")]
    assert ratios
    assert all(math.isfinite(value) and value > 0 for value in ratios)
    return found


def test_decode():
    found = run("decode", "--tiny")
    assert found["ratio_generate"]
    assert found["ratio_copied"]
    [case] = found["cases"]
    exactness = case["exactness"]
    assert exactness["greedy_replies"] == exactness["greedy_equal"] + exactness["near_ties"] > 0
    assert exactness["unexplained"] == 0
    assert exactness["log_prob_error"] < 1e-4


def test_eight_bits():
    found = last_line("eight_bits", "--tiny")
    bits = found["variants"]["weights and kv"]
    assert bits["logit_error_mean"] < 0.1 * found["logit_spread"]
    assert bits["greedy_agree"] > 0.85
    assert found["variants"]["weights"]["score_error_mean"] > 0


def test_score():
    found = run("score", "--tiny")
    assert found["ratio_dense"]
    assert found["ratio_torch"]
    exactness = found["exactness"]
    assert exactness["spread"] > 0.1
    assert exactness["error_dense"] < 1e-4
    assert exactness["error_torch"] < 1e-4


def test_servers():
    found = run("servers", "--tiny", "--load", "2")
    assert found["ratio_cold"]
    assert found["ratio_warm"]
    assert found["exactness"]["spread"] > 0.1
    assert found["exactness"]["error_torch"] < 1e-4
    assert found["load"]["errors"] == 0
    assert found["load"]["requests"] >= found["load"]["clients"]
    for side in found["single"].values():
        assert 0 < side["p50"] <= side["p99"]


def test_trees_of_servers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "clients")
    with importlib.import_module("model_server").ModelServer() as server:
        given = ("--parts", "trees", "--server", f"toy={server.url}")
        found = run("servers", "--tiny", *given)
    assert found["ratio_trees_toy"]
    assert found["ratio_read_toy"]
    assert found["trees"]["toy"]["facts"]["model"] == "toy"
    for side in found["trees"].values():
        assert (side["trees"], side["errors"]) == (found["sizes"]["trees"], 0)
        assert min(side["tokens_read_per_tree"], side["tokens_decoded_per_tree"]) > 0
        assert side["nodes_per_tree"] > 1


def test_prefill():
    found = run("prefill", "--tiny")
    assert found["ratio_ceiling"]
    assert found["exactness"]["error_dense"] < 1e-4


def test_beam():
    found = run("beam", "--tiny")
    assert found["ratio_ceiling"]
    exactness = found["exactness"]
    assert exactness["choices"] == exactness["equal"] + exactness["near_ties"] > 0
    assert exactness["error"] < 1e-4


def test_train_reward():
    found = run("train_reward", "--tiny")
    for name, states in (("trajectories", 8), ("trees", 32)):
        assert found[f"ratio_{name}"]
        case = found[name]
        assert case["tokens"]["ours"] == 16 + 14 * states
        exactness = case["exactness"]
        assert exactness["loss"] > 0
        assert exactness["error_states"] < 1e-4
        assert exactness["error_states_packed"] < 1e-4
        assert exactness["error_torch"] < 1e-4
        assert exactness["error_loss_torch"] < 1e-5


def test_search():
    found = run("search", "--tiny")
    assert found["ratio_pddl"]
    assert found["ratio_latency"]
    for name in ("pddl", "latency"):
        assert found[name]["errors"] == 0
        exactness = found[name]["exactness"]
        assert exactness["identical_at_equal_shapes"] == exactness["trees_at_equal_shapes"] > 0
        assert exactness["unexplained"] == 0


def test_methods():
    """Every registered method, on one environment."""
    found = run("methods", "--tiny", "--environments", "pddl")
    rows = found["pddl"]
    assert {"greedy", "best_of_n", "beam"} <= rows.keys()
    for row in rows.values():
        assert row["errors"] == 0
        assert min(row["policy_tokens_per_task"], row["env_steps_per_task"]) > 0
        exactness = row["exactness"]
        assert exactness["identical_at_equal_shapes"] == exactness["answers_at_equal_shapes"] > 0
        assert exactness["unexplained"] == 0


@pytest.mark.parametrize("name", ["decode", "score"])
def test_large_models_in_another_precision(name):
    options = ["--context", "64", "--tokens", "16"]
    options += {"decode": ["--rows", "1", "40"], "score": ["--groups", "1"]}[name]
    found = run(name, "--model", "tiny", "--dtype", "bfloat16", *options)
    assert found["dtype"] == "bfloat16"


def test_environments():
    found = last_line("environments", "--tiny")
    assert found["environments"].keys() == {"maze", "pddl"}
    for row in found["environments"].values():
        assert row["ok"]
        assert row["answers_equal"]
        assert row["expert"] == 1.0
        assert math.isfinite(row["pool_ms"])


def test_bit_flips():
    kinds = ("model", "export", "checkpoint", "trajectories", "states", "trees", "episodes")
    found = last_line("bit_flips", "--tiny")
    assert found["kinds"].keys() == {*kinds, "archive"}
    for counts in found["kinds"].values():
        assert counts["refused"] + counts["harmless"] == found["flips_of_each"] == 50
        assert counts["silent"] == counts["traceback"] == 0
        assert counts["refused"] > 20
