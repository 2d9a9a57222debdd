"""Experiment files: layers, grids, references, shared stages, and errors with file and line."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.experiments import load
from agentrm_jax.pipeline.experiments.estimates import DECODED, Rates, estimate, rates
from agentrm_jax.pipeline.experiments.jobs import Plan, plan
from agentrm_jax.pipeline.experiments.load import (
    experiment_names,
    find_experiment,
    load_experiment,
)
from agentrm_jax.pipeline.experiments.missing import missing

BASES = pathlib.Path(__file__).parents[2] / "configs" / "experiments" / "bases"
HEAD = """\
title: T
question: Q
source: S
base: tiny.yaml
tables:
- {title: Methods, rows: [run, label]}
"""


@pytest.fixture
def write(tmp_path):
    """Writes an experiment file next to the tiny base; gives its path."""
    shutil.copy(BASES / "tiny.yaml", tmp_path)

    def written(text: str, head: str = HEAD) -> pathlib.Path:
        path = tmp_path / "own.yaml"
        path.write_text(head + text)
        return path

    return written


def planned(path: pathlib.Path, **options) -> Plan:
    return plan(load_experiment(path, **options), path.parent / "out")


def counted(found: Plan) -> dict[str, int]:
    """How many jobs there are of each stage."""
    stages = [job.spec.name for job in found.jobs.values()]
    return {name: stages.count(name) for name in dict.fromkeys(stages)}


def test_runs_share_the_stages_that_their_keys_do_not_touch(write):
    path = write(
        "grid:\n  train_rm.optimizer.learning_rate: [0.001, 0.002]\n  evaluate.n: [1, 2]\n"
    )
    found = planned(path)
    assert counted(found) == {
        "experts": 1, "sft": 1, "explore": 1, "label": 1, "train-rm": 2, "evaluate": 4,
    }  # fmt: skip
    assert [run.entry.name for run in found.evaluated] == [
        f"run-learning_rate={rate}-n={n}" for rate in ("0.001", "0.002") for n in (1, 2)
    ]
    sft = next(job for job in found.jobs.values() if job.spec.name == "sft")
    assert len(sft.runs) == 4
    order = list(found.jobs)
    for number, job in enumerate(found.jobs.values()):
        assert all(order.index(name) < number for name in job.needs)


def test_names_do_not_depend_on_the_folder(write, tmp_path):
    path = write(
        "models:\n  other: {seed: 5}\n"
        'runs:\n  own: {policy: "${other.policy}", train_policy: false}\n'
    )
    experiment = load_experiment(path)
    names = [list(plan(experiment, tmp_path / folder).jobs) for folder in ("a", "b/c")]
    assert names[0] == names[1]


def test_layers_in_order_and_overrides_below_the_runs(write):
    path = write(
        "config: {seed: 3, evaluate: {n: 7}}\nruns:\n  a: {}\n  b: {evaluate: {n: 9}}\n"
        "sizes:\n  big: {config: {evaluate: {num_tasks: 44}}}\n"
    )
    found = planned(path, size="big", overrides=["--evaluate.n=8", "--seed=4"])
    assert [run.config.evaluate.n for run in found.evaluated] == [8, 9]
    assert {run.config.evaluate.num_tasks for run in found.evaluated} == {44}
    assert {run.config.seed for run in found.evaluated} == {4}


def test_seeds_make_runs_of_their_own_with_models_of_their_own(write):
    path = write(
        "models:\n  other: {sft: {fit: {num_updates: 3}}}\n"
        'runs:\n  own: {policy: "${other.policy}", train_policy: false}\n'
    )
    found = planned(path, seeds=[0, 1])
    assert [run.entry.folder for run in found.evaluated] == ["own-seed0", "own-seed1"]
    policies = [run.config.policy for run in found.evaluated]
    assert policies[0] != policies[1]
    assert counted(found)["sft"] == 2
    assert [run.config.evaluate.task_seed for run in found.evaluated] == [None, 0]
    assert set(planned(path).jobs) < set(found.jobs), "the first seed is that of the file"


def test_models_are_trained_as_far_as_a_run_refers_to_them(write):
    models = "models:\n  a: {seed: 1}\n  b: {seed: 2}\n  unused: {seed: 3}\n"
    runs = 'runs:\n  c: {policy: "${a.policy}", train_policy: false, reward_model: "${b.reward}"}\n'
    found = planned(write(models + runs))
    stages = {(job.spec.name, *job.runs) for job in found.jobs.values()}
    assert {(name, run) for name, *runs in stages for run in runs} == {
        ("experts", "a"), ("sft", "a"),
        ("experts", "b"), ("sft", "b"), ("explore", "b"), ("label", "b"), ("train-rm", "b"),
        ("evaluate", "c"),
    }  # fmt: skip
    evaluated = next(job for job in found.jobs.values() if job.spec.name == "evaluate")
    assert sorted(name.rpartition("-")[0] for name in evaluated.needs) == ["sft", "train-rm"]


def test_a_given_model_is_handed_on(write):
    path = write(
        "models:\n  given: {policy: models/given, train_policy: false}\n"
        'runs:\n  own: {policy: "${given.policy}", train_policy: false}\n'
    )
    found = planned(path)
    assert found.evaluated[0].config.policy == "models/given"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rums: {}\n", r"own.yaml, line 7: unknown key rums; did you mean runs\?"),
        ("runs:\n  a: {evaluate: {m: 3}}\n", "own.yaml, line 8: unknown key evaluate.m"),
        ("runs:\n  a: {evaluate: {n: x}}\n", "own.yaml, line 8: evaluate.n must be a whole number"),
        ("runs:\n  a b: {}\n", "own.yaml, line 8: runs.a b must be letters, digits and _"),
        ("runs:\n  a: 3\n", "own.yaml, line 8: runs.a must be keys and values"),
        ("grid:\n  evaluate.n: 3\n", r"own.yaml, line 8: grid.evaluate.n must be a list"),
        ("grid:\n  evaluate.m: [3]\n", "own.yaml, line 8: unknown key evaluate.m"),
        ("sizes:\n  big: {rans: {}}\n", "sizes.big.rans is not a key of the file"),
        ('runs:\n  a: {policy: "${b.policy}"}\n', r"line 8: \$\{b.policy\} names no run or model"),
        ('runs:\n  a: {policy: "${a.policy}"}\n', r"line 8: \$\{a.policy\} refers to itself"),
        ('runs:\n  a: {policy: "${a}"}\n', r"line 8: .* is no reference; write"),
        ('runs:\n  a: {}\n  b: {policy: "${a.value}"}\n', "line 9: .* must end with one of policy"),
        ('runs:\n  a: {}\n  b: {policy: "${a.implicit}"}\n', "has no stage train-implicit"),
        ("runs:\n  a: {}\nseed: 3\n", "line 9: unknown key seed"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        planned(write(text), size="big" if "big" in text else "laptop")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HEAD.replace("title: T\n", ""), "title is missing"),
        (HEAD.replace("base: tiny.yaml\n", ""), "base is missing"),
        (HEAD.replace("tiny.yaml", "absent.yaml"), "absent.yaml: no such file"),
        (HEAD.replace("rows: [run, label]", "measure: x"), "line 6: tables.0.measure must be one"),
        (HEAD.replace("rows: [run, label]", "measure: trees"), "tables.0.trees must be the run"),
        (
            HEAD.replace("rows: [run, label]", "baselines: [x]"),
            "line 6: tables.0.baselines must be",
        ),
        (
            HEAD.replace("rows: [run, label]", "baselines: [greedy], level: kind"),
            "tables.0.baselines must be measure: methods, level: all",
        ),
        (HEAD.replace("rows: [run, label]", "measure: log_fit"), "tables.0.over must be n, or an"),
        (
            HEAD.replace("rows: [run, label]", "measure: log_fit, over: seed"),
            r"tables.0.over must be n, or an axis of grid .* \(got 'seed'\)",
        ),
        (HEAD.replace("rows: [run, label]", "colums: x"), "did you mean columns"),
    ],
)
def test_mistakes_in_the_head(write, head, message):
    with pytest.raises(UserError, match=message):
        planned(write("", head))


def test_an_unknown_name_or_size(write):
    with pytest.raises(UserError, match="no experiment 'main_tabel'; did you mean main_table"):
        find_experiment("main_tabel")
    with pytest.raises(UserError, match="no size 'huge' in this experiment; must be one of laptop"):
        load_experiment(write(""), size="huge")


def test_all_that_is_missing_is_listed_at_once(write):
    path = write(
        "runs:\n"
        "  a: {policy: no/policy, train_policy: false, reward_model: no/reward}\n"
        "  b: {environments: [{name: nowhere}]}\n"
        "  c: {experts: {imported: [no/experts]}, environments: [{name: babyai, wording: odd}]}\n"
    )
    lines = missing(planned(path))
    assert len(lines) == 5
    for text in ("policy: no/policy", "reward_model: no/reward", "'nowhere': not registered",
                 "no/experts: no such folder", "no wording 'odd'"):  # fmt: skip
        assert any(text in line for line in lines), (text, lines)


def test_missing_things_stop_before_anything_runs(write, tmp_path, capsys):
    path = write("runs:\n  a: {policy: no/policy, reward_model: no/reward, train_policy: false}\n")
    assert main(["experiment", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "lacks 2 things: (1) policy: no/policy" in error
    assert "(2) reward_model: no/reward" in error
    assert not (tmp_path / "out").exists()


def test_what_is_expected_of_a_stage(write):
    """Counted by hand from the tiny base."""
    found = planned(write("config: {evaluate: {methods: [greedy, best_of_n]}}\n"))
    costs = {job.spec.name: estimate(job, Rates()) for job in found.jobs.values()}
    assert costs["experts"].tasks == 200
    assert costs["sft"].trained == 200 * 8 * 256
    assert costs["explore"].decoded == 4 * 3 * (2 + 3) * 16  # trees, iterations, turns, tokens
    assert costs["evaluate"].decoded == 6 * 3 * (1 + 2) * 16  # greedy and best of two
    assert costs["explore"].seconds > costs["explore"].decoded / DECODED
    assert rates(found.jobs.values()) == Rates()


def test_the_rate_of_a_resumed_stage_is_of_all_its_starts(write):
    path = write("")
    [search] = [job for job in planned(path).jobs.values() if job.spec.name == "explore"]
    search.folder.mkdir(parents=True)
    record = {"stage": "explore", "depends_on": {}, "made_with": [], "seconds": 10.0}
    record |= {"tokens": 1000, "summary": {"tokens_decoded": 5}}
    (search.folder / "stage.json").write_text(json.dumps(record))
    assert rates(planned(path).jobs.values()).decoded == 100.0


def test_the_plan_is_printed_and_nothing_runs(write, tmp_path, capsys):
    path = write("runs:\n  a: {}\n  b: {evaluate: {n: 1}}\n  c: {policy: no/policy}\n")
    assert main(["experiment", str(path), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "a, b" in shown
    assert "missing: policy: no/policy" in shown
    assert "3 runs, 12 stages (18 without sharing), 0 done" in shown
    assert "assumed: two CPU cores" in shown
    assert not (tmp_path / "out").exists()


def test_experiments_are_listed(capsys):
    assert main(["experiment"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == experiment_names()
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize("name", experiment_names())
def test_every_size_of_every_experiment_can_be_read(name, tmp_path):
    for size in load.SIZES:
        found = plan(load_experiment(find_experiment(name), size=size), tmp_path)
        assert found.evaluated
        assert len({job.name for job in found.jobs.values()}) == len(found.jobs)
