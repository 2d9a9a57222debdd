"""The command line: what a run leaves, what it skips, and mistakes answered by one line."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import chex
import numpy as np
import pytest
from cli_cases import CONFIG, agentrm

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.data.states import open_labels
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.evaluation.config import EvaluateConfig
from agentrm_jax.model.heads import MSE, HLGauss
from agentrm_jax.pipeline.config import EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.models import load_policy, load_reward
from agentrm_jax.pipeline.stages import STAGES, before, depends_on
from agentrm_jax.pipeline.tasks import Tasks
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.run_paths import DATASET
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake is answered by."""
    assert main([str(argument) for argument in arguments]) == 2
    written = capsys.readouterr().err
    assert written.startswith("agentrm: error: ")
    assert written.count("\n") == 1
    return written


@pytest.fixture
def copy(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def test_everything_is_where_people_look(finished: pathlib.Path) -> None:
    for name in ("report.html", "report.json", "results.json", "config.resolved.yaml",
                 "versions.json", "metrics.jsonl"):  # fmt: skip
        assert (finished / name).stat().st_size > 0
    report = read_json(finished / "report.json")
    stages = [stage["stage"] for stage in report["stages"]]
    assert stages == ["experts", "sft", "explore", "label", "train-rm", "sample", "train-implicit",
                      "evaluate"]  # fmt: skip
    assert report["trees"]["trees"] == 16
    assert report["stages"][-1]["summary"]["test_problems_trained_on"] == 0


def test_a_second_run_does_nothing_again(copy: pathlib.Path) -> None:
    found = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.parent != copy and p.is_file()}
    printed, _ = agentrm("run", str(CONFIG), "--output", str(copy), ends=0)
    after = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.parent != copy and p.is_file()}
    assert found == after
    assert printed.count("done before") == 8
    assert "best-of-3, explicit" in printed


def test_another_configuration_is_refused_by_key(copy, capsys) -> None:
    message = fails(capsys, "run", CONFIG, "--output", copy, "--sft.optimizer.learning_rate=0.5")
    assert "sft.optimizer.learning_rate = 0.01, but it is now 0.5" in message


def test_speed_may_change(copy: pathlib.Path) -> None:
    faster = "--explore.search.concurrency=2"
    printed, _ = agentrm("run", str(CONFIG), "--output", str(copy), faster, ends=0)
    assert printed.count("done before") == 8


def test_models_of_another_run_are_taken(finished, tmp_path) -> None:
    models = [
        f"--policy={finished / 'sft' / 'model'}",
        "--train_policy=false",
        f"--reward_model={finished / 'reward' / 'explicit' / 'model'}",
    ]
    given = [*models, "--rewards=[explicit]"]
    agentrm("run", str(CONFIG), "--output", str(tmp_path), *given, ends=0)
    assert not (tmp_path / "sft").exists()
    assert not (tmp_path / "trees").exists()
    rows = [
        [
            {k: v for k, v in row.items() if k != "wall_seconds"}
            for row in read_json(path)
            if row["reward_model"] != "implicit"
        ]
        for path in (finished / "results.json", tmp_path / "results.json")
    ]
    assert rows[0] == rows[1]


def test_candidates_can_be_scored_in_step(copy: pathlib.Path) -> None:
    shutil.rmtree(copy / "eval")
    at_action = "--evaluate.beam.score_at=action"
    agentrm("run", str(CONFIG), "--output", str(copy), at_action, ends=0)
    [row] = [
        row
        for row in read_json(copy / "eval" / "beam" / "results.json")
        if (row["task"], row["split"]) == ("all", "all")
    ]
    [other] = [
        row
        for row in read_json(copy / "eval" / "beam_random" / "results.json")
        if (row["task"], row["split"]) == ("all", "all")
    ]
    assert row["errors"] == 0
    # Only what is kept acts: at most as many steps as beams.
    assert row["env_steps"] < other["env_steps"]
    assert row["reward_tokens"] > row["policy_tokens"] > 0


def test_a_judge_without_an_answer_is_an_error_and_no_choice(finished, tmp_path) -> None:
    given = [
        f"--policy={finished / 'sft' / 'model'}",
        "--train_policy=false",
        "--rewards=[judge]",
        "--evaluate.methods=[best_of_n]",
        "--judge.max_tokens=8",
    ]
    agentrm("run", str(CONFIG), "--output", str(tmp_path), *given, ends=0)
    assert not (tmp_path / "reward").exists()
    [row] = [
        row
        for row in read_json(tmp_path / "results.json")
        if (row["method"], row["task"], row["split"]) == ("best_of_n", "all", "all")
    ]
    assert row["reward_model"] == "judge"
    assert row["errors"] == row["n_tasks"] == 8  # a policy that only knows mazes
    assert row["score_mean"] == 0.0
    assert row["reward_tokens"] > 0


def test_a_judge_by_log_probabilities_always_decides(finished, tmp_path) -> None:
    given = [
        f"--policy={finished / 'sft' / 'model'}",
        "--train_policy=false",
        "--rewards=[judge]",
        "--evaluate.methods=[best_of_n]",
        "--judge.form=log_probs",
    ]
    agentrm("run", str(CONFIG), "--output", str(tmp_path), *given, ends=0)
    [row] = [
        row
        for row in read_json(tmp_path / "results.json")
        if (row["method"], row["task"], row["split"]) == ("best_of_n", "all", "all")
    ]
    assert (row["reward_model"], row["errors"], row["n_tasks"]) == ("judge", 0, 8)
    assert row["reward_tokens"] > 0


def test_reward_training_with_a_ranking_loss(copy) -> None:
    shutil.rmtree(copy / "reward")
    shutil.rmtree(copy / "eval")
    given = ["--train_rm.ranking.weight=1", "--train_rm.fit.held_out=0.2"]
    agentrm("train-rm", str(CONFIG), "--output", str(copy), *given, ends=0)
    summary = read_json(copy / "reward" / "explicit" / "stage.json")["summary"]
    assert summary["sibling_pairs"] > 0
    assert summary["sibling_pairs_separated"] >= 0
    rows = [row for row in read_metrics(copy / "metrics.jsonl") if row["stage"] == "train-rm"]
    assert {"ranking_loss", "sibling_accuracy", "held_out_loss"} <= set(rows[-1])


def test_reward_training_can_start_from_a_reward_model(finished, copy) -> None:
    shutil.rmtree(copy / "reward")
    shutil.rmtree(copy / "eval")
    given = f"--reward_init={finished / 'reward' / 'explicit' / 'model'}"
    still = "--train_rm.optimizer.learning_rate=1e-12"  # so that it ends where it began
    agentrm("train-rm", str(CONFIG), "--output", str(copy), given, still, ends=0)
    mesh = make_mesh(MeshConfig())
    began, ended = (
        load_reward(run / "reward" / "explicit" / "model", "float32", mesh).params
        for run in (finished, copy)
    )
    chex.assert_trees_all_close(began, ended, atol=1e-6, rtol=1e-7)


def test_other_targets_heads_and_adapters(finished, copy, capsys) -> None:
    """The trunk's frozen parts stay, the head is stored and read back by what evaluates."""
    for folder in ("states", "reward", "eval"):
        shutil.rmtree(copy / folder)
    given = ("--label.target=td", "--train_rm.head.kind=hl_gauss", "--train_rm.head.bins=20",
             "--train_rm.lora.rank=2", "--train_rm.lora.matrices=[q,o]",
             "--train_rm.optimizer.moments=bfloat16", "--train_rm.fit.num_updates=6",
             "--train_rm.fit.held_out=0.3", "--train_implicit.fit.held_out=0.3",
             "--train_implicit.lora.rank=2",
             "--evaluate.methods=[best_of_n]")  # fmt: skip
    agentrm("run", str(CONFIG), "--output", str(copy), *given, ends=0)
    measured = {row["stage"]: row for row in read_metrics(copy / "metrics.jsonl")}
    assert measured["train-rm"]["held_out_loss"] > 0
    assert measured["train-implicit"]["held_out_loss"] > 0
    directory, mesh = copy / "reward" / "explicit" / "model", make_mesh(MeshConfig())
    model = load_reward(directory, "float32", mesh)
    assert model.head == HLGauss(bins=20)
    policy = load_policy(copy / "sft" / "model", "float32", mesh).params
    trunk = model.params["trunk"]
    for name, value in trunk["layers"].items():
        same = np.array_equal(value, policy["layers"][name])
        assert same == (name not in ("q", "o")), name
    np.testing.assert_array_equal(trunk["embed"], policy["embed"])
    implicit = load_policy(copy / "reward" / "implicit" / "model", "float32", mesh).params
    np.testing.assert_array_equal(implicit["embed"], policy["embed"])
    assert not np.array_equal(implicit["layers"]["q"], policy["layers"]["q"])
    rows = read_json(copy / "eval" / "best_of_n" / "scores.json")
    scores = [row["score"] for row in rows if row["reward_model"] == "explicit"]
    assert 0.0 < min(scores) < max(scores) < 1.0
    before, after = (list(open_labels(run / "states" / DATASET)) for run in (finished, copy))
    assert [tree.parents for tree in before] == [tree.parents for tree in after]
    assert [tree.values for tree in before] != [tree.values for tree in after]

    shutil.rmtree(copy / "reward")
    shutil.rmtree(copy / "eval")
    own = finished / "reward" / "explicit" / "model"
    message = fails(capsys, "train-rm", CONFIG, "--output", copy, f"--reward_init={own}", *given)
    assert "train_rm.head must be that of reward_init, {'kind': 'mse'" in message


def test_an_implicit_model_learns_from_siblings(finished, copy, capsys) -> None:
    """From the search trees: nothing is sampled for it."""
    for folder in ("samples", "reward", "eval"):
        shutil.rmtree(copy / folder)
    pairs = ("--train_implicit.pairs=siblings",)
    message = fails(capsys, "train-implicit", CONFIG, "--output", copy, *pairs)
    assert "train_implicit.pairs needs objective.loss: dpo" in message
    pairs += ("--train_implicit.objective.loss=dpo", "--train_implicit.fit.num_updates=4")
    agentrm("train-implicit", str(CONFIG), "--output", str(copy), *pairs, ends=0)
    rows = [row for row in read_metrics(copy / "metrics.jsonl") if row["stage"] == "train-implicit"]
    assert rows[-1]["update"] == 4
    assert 0 <= rows[-1]["accuracy"] <= 1
    assert not (copy / "samples").exists()
    one = ("--explore.num_tasks=1", "--label.min_visits=1000")
    message = fails(capsys, "sample", CONFIG, "--output", copy, *pairs, *one)
    assert "sample: not a stage of this configuration" in message


def test_a_policy_is_adapted_in_bfloat16(finished, copy) -> None:
    for folder in ("sft", "trees", "samples", "states", "reward", "eval"):
        shutil.rmtree(copy / folder)
    start = finished / "sft" / "model"
    agentrm("sft", str(CONFIG), "--output", str(copy), f"--policy={start}", "--dtype=bfloat16",
            "--sft.lora.rank=2", "--sft.fit.num_updates=4", ends=0)  # fmt: skip
    mesh = make_mesh(MeshConfig())
    began, ended = (load_policy(d / "sft" / "model", "bfloat16", mesh) for d in (finished, copy))
    np.testing.assert_array_equal(ended.params["embed"], began.params["embed"])
    for name in ("q", "down"):
        a, b = (np.float32(side.params["layers"][name]) for side in (began, ended))
        assert 0 < np.linalg.norm(a - b) < 0.5 * np.linalg.norm(a)


def test_adapters_need_a_policy(tmp_path, capsys) -> None:
    message = fails(capsys, "run", CONFIG, "--output", tmp_path, "--sft.lora.rank=2")
    assert "sft.lora.rank must be 0 unless `policy` is given" in message


def test_models_of_before_are_read_and_damaged_heads_named(copy) -> None:
    directory = copy / "reward" / "explicit" / "model"
    path, mesh = directory / "model.json", make_mesh(MeshConfig())
    stored = json.loads(path.read_text())
    assert stored["config"].pop("value_head")["kind"] == "mse"
    (directory / "manifest.json").unlink()  # as it was before
    path.write_text(json.dumps(stored))
    assert load_reward(directory, "float32", mesh).head == MSE()
    for wrong, said in (({"kind": "mean"}, "'mean'"), ({"knd": "mse"}, "knd"), (3, "mapping")):
        path.write_text(json.dumps({**stored, "config": stored["config"] | {"value_head": wrong}}))
        with pytest.raises(UserError, match=rf"model\.json: value_head: .*{said}"):
            load_reward(directory, "float32", mesh)
    path.write_text(json.dumps({**stored, "config": stored["config"] | {
        "value_head": {"kind": "quantile", "bins": 5}}}))  # fmt: skip
    with pytest.raises(UserError, match=r"parameter value_head\.bias has shape \(\), .* \(5,\)"):
        load_reward(directory, "float32", mesh)


MODES = {
    "all stages": {},
    "a given policy": {"policy": "p", "train_policy": False},
    "given models": {"policy": "p", "train_policy": False, "reward_model": "r"},
}
CHANGES = {
    "seed": 5,
    "environments": [EnvironmentConfig(name="maze", max_steps=3)],
    "evaluate": EvaluateConfig(n=2),
    "policy": "other",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", CHANGES)
def test_whatever_decides_results_is_looked_at(mode: str, key: str) -> None:
    config = RunConfig(environments=[EnvironmentConfig(name="maze")], **MODES[mode])
    changed = dataclasses.replace(config, **{key: CHANGES[key]})
    evaluate = STAGES[-1]
    assert depends_on(config, evaluate) != depends_on(changed, evaluate)


def test_a_stage_rests_on_those_that_it_reads() -> None:
    kinds = RunConfig(
        environments=[EnvironmentConfig(name="maze")], rewards=("explicit", "implicit")
    )
    names = {spec.name: [each.name for each in before(kinds, spec)] for spec in STAGES}
    assert names["train-implicit"] == ["experts", "sft", "sample"]
    assert names["train-rm"] == ["experts", "sft", "explore", "label"]
    assert names["evaluate"] == [spec.name for spec in STAGES[:-1] if spec.name != "calibrate"]


def test_a_run_of_an_earlier_version_goes_on(copy, capsys) -> None:
    """Its records lack the keys that have come since."""
    for path in copy.rglob("stage.json"):
        record = read_json(path)
        del record["sha256"], record["depends_on"]["environments"][0]["train"]
        for key in ("options", "instruction"):
            del record["depends_on"]["environments"][0][key]
        record["depends_on"].pop("trajectories", None)
        record["depends_on"].get("train_rm", {}).pop("head_bias", None)
        path.write_text(json.dumps(record))
    assert main(["run", str(CONFIG), "--output", str(copy)]) == 0
    assert capsys.readouterr().out.count("done before") == 8
    other = fails(capsys, "run", CONFIG, "--output", copy, "--train_rm.head_bias=false")
    assert "train_rm.head_bias = true, but it is now false" in other


def test_two_processes_do_not_share_a_folder(copy, capsys) -> None:
    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process works" in fails(capsys, "run", CONFIG, "--output", copy)


def test_files_of_unknown_origin_are_not_taken_up(copy, capsys) -> None:
    (copy / "trees" / "stage.json").unlink()
    assert "no record of what made them" in fails(capsys, "run", CONFIG, "--output", copy)


def test_a_refused_run_changes_nothing(copy, capsys) -> None:
    resolved = (copy / "config.resolved.yaml").read_text()
    fails(capsys, "run", CONFIG, "--output", copy, "--seed=9")
    assert (copy / "config.resolved.yaml").read_text() == resolved


def test_an_output_that_cannot_be_written(tmp_path, capsys) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in fails(capsys, "run", CONFIG, "--output", file)


def test_stages_one_by_one_wait_for_each_other(tmp_path, capsys) -> None:
    message = fails(capsys, "label", CONFIG, "--output", tmp_path)
    assert "experts has not ended yet" in message
    message = fails(capsys, "explore", CONFIG, "--output", tmp_path, "--reward_model=elsewhere")
    assert "explore: not a stage of this configuration: reward_model names one" in message


def test_a_corrupt_tree_is_named_by_line(copy, capsys) -> None:
    trees = copy / "trees" / "trees.jsonl"
    lines = trees.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"kind"', b'"kinb"', 1)
    trees.write_bytes(b"".join(lines))
    shutil.rmtree(copy / "states")
    assert f"{trees}, line 3: corrupt record" in fails(capsys, "label", CONFIG, "--output", copy)


def test_a_model_of_another_shape_is_named(copy, capsys) -> None:
    stored = copy / "sft" / "model" / "model.json"
    value = json.loads(stored.read_text())
    value["config"]["intermediate_size"] = 80
    stored.write_text(json.dumps(value))
    shutil.rmtree(copy / "eval")
    message = fails(capsys, "evaluate", CONFIG, "--output", copy)
    assert f"{stored}: its checksum differs from manifest.json" in message
    (copy / "sft" / "model" / "manifest.json").unlink()
    message = fails(capsys, "evaluate", CONFIG, "--output", copy)
    assert "parameter layers.down has shape (2, 32, 64), the config requires (2, 32, 80)" in message


def test_no_model(tmp_path, capsys) -> None:
    given = (
        "--policy=/nowhere/at/all", "--train_policy=false", "--reward_model=x",
        "--rewards=[explicit]",
    )  # fmt: skip
    message = fails(capsys, "evaluate", CONFIG, "--output", tmp_path, *given)
    assert "/nowhere/at/all: no model here" in message


def test_a_given_model_that_reads_less_is_refused_at_once(finished, tmp_path, capsys) -> None:
    policy = finished / "sft" / "model"
    for command in ("run", "evaluate"):
        message = fails(
            capsys, command, CONFIG, "--output", tmp_path / command, "--train_policy=false",
            f"--policy={policy}", f"--reward_model={finished / 'reward' / 'explicit' / 'model'}",
            "--rewards=[explicit]", "--engine.context=4096",
        )  # fmt: skip
        assert "engine.context must be at most" in message
        assert f"the longest input of {policy}" in message
        assert not (tmp_path / command / "eval" / "greedy").exists()


def test_wrong_words(tmp_path, capsys) -> None:
    assert "did you mean explore?" in fails(capsys, "exlore", CONFIG)
    assert "--output" in fails(capsys, "run", CONFIG)
    assert "no such file" in fails(capsys, "run", "absent.yaml", "--output", tmp_path)
    assert "did you mean maze?" in fails(capsys, "demonstrate", "mase", "--output", tmp_path)


def test_help_explains(capsys) -> None:
    assert main(["--help"]) == 0
    assert "train-rm" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: agentrm run CONFIG --output DIR" in text
    assert "Iterations of each tree" in text


def test_headings_of_help_are_whole() -> None:
    """They are the first lines of docstrings."""
    config = RunConfig(environments=[EnvironmentConfig(name="maze")])
    kinds = {type(value) for value in _configs(config)}
    assert len(kinds) > 10
    assert [k.__name__ for k in kinds if not k.__doc__.splitlines()[0].endswith(".")] == []


def _configs(value: Any) -> Iterator[Any]:
    """A config and those that it holds."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _configs(getattr(value, field.name))


def test_experts_of_an_environment(tmp_path, capsys) -> None:
    output = tmp_path / "experts"
    given = ["maze", "--split", "train", "--n", "7", "--output", str(output)]
    assert main(["demonstrate", *given]) == 0
    printed = capsys.readouterr()
    assert "7 trajectories of 7 tasks" in printed.out
    hint = "agentrm: `agentrm experts NAME` is now `agentrm demonstrate NAME`\n"
    assert hint not in printed.err
    assert main(["experts", *given]) == 0  # as earlier versions spelled it
    again = capsys.readouterr()
    assert again.out == printed.out
    assert again.err.startswith(hint)
    trajectories = list(open_trajectories(output))
    assert len(trajectories) == 7
    assert all(t.success and t.task.split == "train" for t in trajectories)


def test_the_quickstart_tests_no_problem_that_it_trains_on(tmp_path) -> None:
    path = CONFIG.with_name("quickstart.yaml")
    config = load_config(path, ())
    tasks = Tasks(config)
    assert tasks.overlap() == 0
    experts, explored = tasks.experts, tasks.explored
    assert len(experts) == config.experts.num_tasks
    assert len(explored) == config.explore.num_tasks
    problems = [task.problem for task in (*experts, *explored, *tasks.test)]
    assert len(set(problems)) == len(problems)
    held_out = {task.kind for task in tasks.test if task.held_out}
    assert held_out == set(config.environments[0].held_out)
    assert not held_out & {task.kind for task in (*experts, *explored)}


def test_an_environment_is_held_out_as_a_whole(tmp_path) -> None:
    pddl = EnvironmentConfig(name="pddl", kinds=["gripper", "blockworld"], held_out=["barman"])
    named = [EnvironmentConfig(name="maze", train=False, kinds=["generated"]), pddl]
    tasks = Tasks(RunConfig(environments=named))
    for trained, n in ((tasks.experts, 2000), (tasks.explored, 100)):
        assert len(trained) == n
        assert {task.environment for task in trained} == {"pddl"}
        assert {task.kind for task in trained} == {*pddl.kinds}
    tested = {(task.environment, task.kind, task.held_out) for task in tasks.test}
    assert tested == {
        ("maze", "generated", True),
        ("pddl", "gripper", False),
        ("pddl", "blockworld", False),
        ("pddl", "barman", True),
    }


def test_what_a_held_out_environment_lacks_is_said_at_once(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    path = tmp_path / "run.yaml"
    path.write_text("environments: [{name: maze}, {name: scienceworld, train: false}]\n")
    said = fails(capsys, "run", path, "--output", tmp_path / "run")
    assert "scienceworld needs Java" in said
    assert not (tmp_path / "run" / "experts").exists()


def test_what_cannot_be_held_out(tmp_path) -> None:
    maze = EnvironmentConfig(name="maze", train=False)
    for held_out in ({"train": False}, {"held_out": ["generated", "double_t"]}):
        named = RunConfig(environments=[EnvironmentConfig(name="maze", **held_out)])
        with pytest.raises(UserError, match="environments are all held out"):
            _ = Tasks(named).explored
    with pytest.raises(UserError, match=r"maze is held out as a whole \(train: false\)"):
        dataclasses.replace(maze, held_out=["double_t"])
    with pytest.raises(UserError, match="held_out names double_t, which kinds names as well"):
        EnvironmentConfig(name="maze", kinds=["double_t"], held_out=["double_t"])
    models = {"policy": "p", "train_policy": False, "reward_model": "r"}
    only_tested = Tasks(RunConfig(environments=[maze], **models))
    assert (only_tested.experts, only_tested.explored) == ([], [])
    assert all(task.held_out for task in only_tested.test)


def test_overlap_is_found_where_there_is_one(tmp_path, monkeypatch) -> None:
    config = RunConfig(environments=[EnvironmentConfig(name="maze")])
    tasks = Tasks(config)
    assert tasks.overlap() == 0
    tasks.__dict__["test"] = [*tasks.test, tasks.explored[0]]
    assert tasks.overlap() == 1
