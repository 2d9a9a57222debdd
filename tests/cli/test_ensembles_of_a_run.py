"""Reward models with options in a real run, against the scores of the run's own ones."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from cli_cases import CONFIG

from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths


def test_ensembles_and_pairs_of_a_run(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    paths = RunPaths(copy)
    shutil.rmtree(paths.stage("evaluate"))
    pair = f"policy: {paths.implicit_model}, reference: {paths.policy_model}"
    config = load_config(
        CONFIG,
        [
            "--rewards=[explicit, implicit, same, pair, both, ranked]",
            f"--reward_options.same={{kind: explicit, model: {paths.explicit_model}}}",
            f"--reward_options.pair={{kind: implicit_pair, {pair}}}",
            "--reward_options.both={kind: ensemble, of: [explicit, implicit], scale: standard, "
            "beta: 0.5}",
            "--reward_options.ranked={kind: ensemble, of: [same, pair], scale: rank}",
            "--evaluate.methods=[best_of_n]",
            "--evaluate.num_tasks=4",
        ],
    )
    runner.run_stage(config, copy, "evaluate")
    scores: dict[str, list[float]] = {}
    for row in read_json(paths.method("best_of_n").scores):
        scores.setdefault(row["reward_model"], []).append(row["score"])
    assert {name: len(own) for name, own in scores.items()} == dict.fromkeys(config.rewards, 12)
    assert scores["same"] == pytest.approx(scores["explicit"], abs=1e-5)
    assert scores["pair"] == pytest.approx(scores["implicit"], rel=1e-3, abs=1e-4)
    scales = read_json(paths.reward_scales)
    scaled = [
        (np.asarray(scores[name]) - scales[name]["mean"]) / scales[name]["deviation"]
        for name in ("explicit", "implicit")
    ]
    wanted = np.mean(scaled, axis=0) - 0.5 * np.std(scaled, axis=0)
    assert scores["both"] == pytest.approx(wanted.tolist())
    assert scales["explicit"]["trajectories"] == len(paths.samples.read_bytes().splitlines())
    rows = {row["reward_model"] for row in read_json(paths.method("best_of_n").by_n)}
    assert rows >= {"both", "pair"}
    assert "ranked" not in rows  # its scores depend on the other trajectories
    modified = paths.reward_scales.stat().st_mtime_ns
    shutil.rmtree(paths.stage("evaluate"))
    alone = dataclasses.replace(config, rewards=("both",))
    runner.run_stage(alone, copy, "evaluate")
    assert paths.reward_scales.stat().st_mtime_ns == modified  # measured once
    rows = read_json(paths.method("best_of_n").scores)
    assert [row["score"] for row in rows] == pytest.approx(scores["both"], abs=1e-4)
