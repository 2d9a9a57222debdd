"""Experiments at tiny size, in one folder: shared stages, tables, resuming.

Those that are not `QUICK` are run by `.ci/run` and by `pytest -m slow`.
"""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from agentrm_jax.cli.main import main
from agentrm_jax.evaluation.harness import by_task
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.experiments import run as run_module
from agentrm_jax.pipeline.experiments.jobs import plan
from agentrm_jax.pipeline.experiments.load import (
    experiment_names,
    find_experiment,
    load_experiment,
)
from agentrm_jax.runtime.run_claim import FolderInUse
from agentrm_jax.runtime.run_paths import RunPaths

QUICK = ("labels", "adversarial", "weak_to_strong")
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in experiment_names()
]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> pathlib.Path:
    """The folder of all experiments of this module; `.ci/run` gives the folder of its own ones."""
    done = os.environ.get("AGENTRM_TINY_EXPERIMENTS")
    return pathlib.Path(done) if done else tmp_path_factory.mktemp("experiments")


def run(name: str, output: pathlib.Path, *options: str) -> dict:
    """Runs an experiment at tiny size; gives its record."""
    assert main(["experiment", name, "--size", "tiny", "--output", str(output), *options]) == 0
    return json.loads((output / f"{name}-tiny" / "experiment.json").read_text())


def rows(record: dict, table: int = 0) -> list[dict]:
    return record["tables"][table]["rows"]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_and_shows_its_tables(name, output, capsys):
    experiment = load_experiment(find_experiment(name), size="tiny")
    found = plan(experiment, output)
    record = run(name, output)
    shown = capsys.readouterr().out
    folder = output / f"{name}-tiny"
    text, page = (
        (folder / "experiment.md").read_text(),
        (folder / "experiment.html").read_text(),
    )
    assert len(record["tables"]) == len(experiment.config.tables)
    for number, table in enumerate(experiment.config.tables):
        assert rows(record, number), table.title
        assert table.title in text
        assert table.title in shown
    for number in experiment.config.paper:
        assert f"{number.value:g}" in text
        assert f"{number.value:g}" in page
    assert {stage["name"] for stage in record["stages"]} == set(found.jobs)
    runs = {run.entry.name for run in found.evaluated}
    assert {row["run"] for row in rows(record)} <= runs


@pytest.mark.parametrize(
    "name", ["labels", "weak_to_strong", pytest.param("main_table", marks=pytest.mark.slow)]
)
def test_rows_next_to_the_papers_numbers(name, output):
    """Rows that the paper's numbers name exist (at laptop size n is 5, at tiny size 2)."""
    record = run(name, output)
    keys = record["tables"][0]["table"]["rows"]
    found = {" · ".join(str(row[key]) for key in keys) for row in rows(record)}
    named = {number["row"] for number in record["paper"]} - {""}
    assert named
    for name in named:
        assert name.replace("best-of-5", "best-of-2").replace("beam 5x5", "beam 2x2") in found


def test_experiments_share_stages(output, capsys):
    """Two experiments whose base is the same have one policy."""
    run("adversarial", output)
    run("labels", output)
    capsys.readouterr()
    stages = [
        {
            s["name"]
            for s in json.loads((output / f"{n}-tiny/experiment.json").read_text())["stages"]
        }
        for n in ("adversarial", "labels")
    ]
    shared = {name.rpartition("-")[0] for name in stages[0] & stages[1]}
    assert shared >= {"experts", "sft", "explore"}
    again = run("labels", output)
    shown = capsys.readouterr().out
    assert shown.count("done before") == len(again["stages"])


def test_a_run_of_an_experiment_is_a_run(output):
    record = run("labels", output)
    folder = output / "labels-tiny" / "runs" / "td_1"
    assert os.readlink(folder / "sft").startswith("../../../stages/sft-")
    assert (folder / "metrics.jsonl").read_text().count("train-rm")
    results = json.loads((folder / "eval" / "best_of_n" / "results.json").read_text())
    expected = {
        row["method"]: row["score_mean"] for row in results if row["task"] == row["split"] == "all"
    }
    found = {row["method"]: row["score_mean"] for row in rows(record) if row["run"] == "td_1"}
    assert set(found) == {"best_of_n", "random_of_n", "oracle_of_n"}
    assert found == {method: expected[method] for method in found}
    from agentrm_jax.pipeline.load_config import load_config

    config = load_config(RunPaths(folder).config)
    runner.report(config, folder)
    assert (folder / "report.html").exists()


def test_an_interrupted_experiment_resumes(tmp_path, monkeypatch, capsys):
    """The second stage is interrupted; then the command ends with the same stages."""
    real, done = runner.run_stage, []

    def interrupted(config, directory, name):
        if len(done) == 2:
            raise KeyboardInterrupt
        real(config, directory, name)
        done.append(name)

    monkeypatch.setattr(runner, "run_stage", interrupted)
    command = ["experiment", "sft_held_in", "--size", "tiny", "--output", str(tmp_path)]
    assert main(command) == 130
    assert len(list((tmp_path / "stages").glob("*/*/stage.json"))) >= 2
    capsys.readouterr()
    refused = []

    def in_use_at_first(config, directory, name):
        """Another process works on the stages that are not finished."""
        if name not in done and refused.count(name) < 2:
            refused.append(name)
            raise FolderInUse(f"{directory}: another process works in this folder")
        real(config, directory, name)

    monkeypatch.setattr(runner, "run_stage", in_use_at_first)
    monkeypatch.setattr(run_module, "_POLL_SECONDS", 0.01)
    assert main([*command, "--dry-run"]) == 0
    assert "2 done" in capsys.readouterr().out
    record = run("sft_held_in", tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("done before") == 2
    assert shown.count("another process works on it; waiting") == len(refused) / 2 > 0
    assert rows(record)


def test_seeds_are_averaged_within_a_task(output):
    options = ("--seeds", "0,1", "--train_rm.optimizer.learning_rate=0.002")
    record = run("sft_held_in", output, *options)
    assert record["seeds"] == [0, 1]
    folders = {path.name for path in (output / "sft_held_in-tiny" / "runs").iterdir()}
    assert {"run-seed0", "run-seed1"} <= folders
    assert all(row["seeds"] == [0, 1] for row in rows(record))
    for row in rows(record):
        if row["label"] != "greedy":
            continue
        outcomes: dict[str, list[float]] = {}
        for seed in (0, 1):
            folder = output / "sft_held_in-tiny" / "runs" / f"run-seed{seed}" / "eval" / "greedy"
            for task, group in by_task(read_rollouts(folder / "rollouts.jsonl")).items():
                outcomes.setdefault(task, []).append(group[0].trajectory.outcome)
        assert all(len(each) == 2 for each in outcomes.values())  # both seeds had the same tasks
        means = [sum(each) / len(each) for each in outcomes.values()]
        assert row["n_tasks"] == len(means)
        assert row["score_mean"] == pytest.approx(sum(means) / len(means))


def test_scores_before_and_after_a_manipulation(output):
    found = {(r["reward_model"], r["manipulation"]): r for r in rows(run("adversarial", output))}
    assert {model for model, _ in found} == {"explicit", "implicit"}
    for row in found.values():
        assert row["change"] == pytest.approx(row["score_after"] - row["score_before"])
        assert row["change_ci95"][0] <= row["change"] <= row["change_ci95"][1]
        assert 0 <= row["raised"] <= 1


def test_costs_grow_with_the_length(output):
    found = {(r["reward_model"], r["length"]): r for r in rows(run("cost_over_length", output))}
    assert {model for model, _ in found} == {"explicit", "implicit", "judge"}
    for model in ("explicit", "implicit", "judge"):
        assert found[model, 1]["tokens"] < found[model, 2]["tokens"]
        assert found[model, 1]["milliseconds"] > 0


@pytest.mark.slow
def test_parts_of_states_reach_the_reward_model(output):
    """Without observations the reward model that is trained, and read, is another one."""
    record = run("state_representation", output)
    trees = {row["run"]: row for row in rows(record, 1) if row["name"] == "reward model"}
    assert set(trees) == {"all_parts", "no_thought", "no_observation", "no_action", "action_only"}
    assert len({row["squared_error"] for row in trees.values()}) > 1


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    folder = tmp_path / "labels-tiny"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    command = ["experiment", "labels", "--size", "tiny", "--output", str(tmp_path)]
    assert main(command) == 2
    assert "holds files, but no experiment (mine.txt)" in capsys.readouterr().err
    assert not (tmp_path / "stages").exists()
