"""Reward models trained from Python: resumed, on all kinds of examples, exported."""

import dataclasses
import json
import pathlib
import signal

import numpy as np
import pytest
import transformers

import agentrm_jax as arm
from agentrm_jax.core.errors import Stopped
from agentrm_jax.model.heads import ValueHead
from agentrm_jax.pipeline import train_reward_model as train_module
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.testing import (
    GUESS_PROMPT,
    Guess,
    guess_policy,
    guess_tasks,
    write_tiny_policy,
)
from agentrm_jax.train import fit as fit_module
from agentrm_jax.train.fit import FitConfig

TINY = ModelConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=48
)
FIT = FitConfig(num_updates=6, batch_size=2, length=512, checkpoint_every=2, metrics_every=1)
PROMPTS = {"guess": GUESS_PROMPT}


@pytest.fixture(scope="module")
def examples():
    """Search trees, labelled trees and trajectories, each of tasks of its own."""
    with arm.EnvPool({"guess": Guess}) as envs:
        tasks = guess_tasks(4, max_steps=4)
        trees = arm.explore(guess_policy, envs, tasks, num_iterations=4, expansion_width=2)
        logged = arm.rollouts(guess_policy, envs, guess_tasks(4, seed=1, max_steps=4))
        trajectories = sorted((r.trajectory for r in logged), key=lambda t: t.task.task_id)
    return {"trees": trees[:2], "labelled": arm.label(trees[2:]), "logged": trajectories}


@pytest.fixture(scope="module")
def mixed(examples):
    return [example for kind in examples.values() for example in kind]


def train(examples, folder: pathlib.Path, **arguments) -> arm.RewardModel:
    settings = {"init": TINY, "prompts": PROMPTS, "fit": FIT} | arguments
    return arm.train_reward_model(examples, folder, **settings)


def weights(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of the parameters, read through an export."""
    output = folder.with_name(f"{folder.name}_exported")
    arm.export_model(folder, "reward", output)
    return {path.name: path.read_bytes() for path in output.glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(mixed, tmp_path_factory):
    """A training without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    train(mixed, folder)
    return folder


def states(examples) -> list[arm.Trajectory]:
    return [dataclasses.replace(t, steps=t.steps[:n]) for t in examples["logged"] for n in (0, 1)]


@pytest.mark.parametrize(
    ("interruption", "update"),
    [(KeyboardInterrupt, 5), (signal.SIGTERM, 3)],
)
def test_an_interrupted_training_resumes_with_the_same_result(
    mixed, whole, tmp_path, monkeypatch, interruption, update
):
    run_update = fit_module._Loop.run_update

    def interrupted(loop):
        run_update(loop)
        if loop.update == update:
            if isinstance(interruption, signal.Signals):
                signal.raise_signal(interruption)
            else:
                raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Loop, "run_update", interrupted)
        stops = Stopped if isinstance(interruption, signal.Signals) else interruption
        with pytest.raises(stops):
            train(mixed, tmp_path / "model")
    assert not (tmp_path / "model" / "model").exists()
    done = []

    def counted(loop):
        run_update(loop)
        done.append(loop.update)

    monkeypatch.setattr(fit_module._Loop, "run_update", counted)
    train(mixed, tmp_path / "model")
    saved = update if stops is Stopped else update - update % 2
    assert done == list(range(saved + 1, 7))
    assert weights(tmp_path / "model") == weights(whole)
    rows = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").open()]
    assert sorted({row["update"] for row in rows}) == list(range(1, 7))


def test_a_finished_training_is_loaded(mixed, whole, monkeypatch):
    monkeypatch.setattr(fit_module._Loop, "run_update", None)
    assert train(mixed, whole).context
    assert not (whole / "checkpoints").exists()


def test_trees_and_their_labels_give_the_same_rows(examples, tmp_path, monkeypatch):
    seen = []

    def only_recorded(inputs):
        seen.append(inputs.rows)
        raise InterruptedError

    monkeypatch.setattr(train_module, "run_fit", only_recorded)
    for name, given in (("a", examples["trees"]), ("b", arm.label(examples["trees"]))):
        with pytest.raises(InterruptedError):
            train(given, tmp_path / name)
    for first, second in zip(*map(dataclasses.astuple, seen), strict=True):
        np.testing.assert_array_equal(first, second)
    assert (seen[0].weights > 0).any()


def test_an_exported_model_is_read_by_transformers_and_scores_alike(whole, examples, tmp_path):
    assert arm.export_model(whole, "reward", tmp_path / "exported") > 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "exported")
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert (config.num_labels, config.hidden_size, config.num_hidden_layers) == (1, 32, 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert len(tokenizer) <= config.vocab_size
    exported = arm.RewardModel.load(tmp_path / "exported", PROMPTS)
    [expected] = arm.RewardModel.load(whole).score([states(examples)])
    [found] = exported.score([states(examples)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(expected)) > 1


def test_held_out_tasks_are_measured_and_not_trained_on(mixed, tmp_path, monkeypatch):
    seen = []

    def recorded(inputs):
        seen.append(inputs)
        params, summary = fit_module.fit(inputs)
        seen.append(summary)
        return params, summary

    def only_recorded(inputs):
        seen.append(inputs)
        raise InterruptedError

    monkeypatch.setattr(train_module, "run_fit", recorded)
    train(mixed, tmp_path / "model", fit=dataclasses.replace(FIT, held_out=0.25))
    monkeypatch.setattr(train_module, "run_fit", only_recorded)
    with pytest.raises(InterruptedError):
        train(mixed, tmp_path / "all")
    apart, summary, together = seen
    rows = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").open()]
    measured = {row["update"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}
    assert sorted(measured) == [2, 4, 6]
    assert summary["best_update"] == min(measured, key=measured.__getitem__)

    def num_labels(rows):
        return int((rows.weights > 0).sum())

    assert together.held_out is None
    assert num_labels(apart.rows) + num_labels(apart.held_out) == num_labels(together.rows)
    assert 0 < num_labels(apart.held_out) < num_labels(apart.rows)


def test_too_few_tasks_to_hold_some_out(examples, tmp_path):
    with pytest.raises(arm.UserError, match=r"fit.held_out must be 0 because 1 tasks"):
        train(examples["logged"][:1], tmp_path / "m", fit=dataclasses.replace(FIT, held_out=0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("fit", dataclasses.replace(FIT, num_updates=7)),
        ("head", arm.HLGauss()),
        ("prompts", {"guess": None}),
        ("init", None),
    ],
)
def test_a_folder_of_other_arguments_is_refused(mixed, whole, name, value):
    with pytest.raises(
        arm.UserError, match=rf"holds a training with (other {name}|{name} = .* \(got .*\));"
    ):
        train(mixed, whole, **{name: value})


def test_a_folder_of_other_examples_is_refused(mixed, whole):
    with pytest.raises(arm.UserError, match="holds a training with other examples;"):
        train(mixed[1:], whole)


def test_a_folder_with_something_else_is_refused(mixed, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(arm.UserError, match="is not empty; choose another folder"):
        train(mixed, tmp_path)


def test_unknown_settings_are_refused(mixed, tmp_path):
    with pytest.raises(TypeError, match="learning_rate"):
        train(mixed, tmp_path / "m", learning_rate=0.1)
    with pytest.raises(arm.UserError, match="attention must be one of"):
        dataclasses.replace(FIT, attention="fast")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Unnamed(arm.MSE):
        """A head that is not registered."""

    assert issubclass(Unnamed, ValueHead)
    with pytest.raises(arm.UserError, match="the value head Unnamed has no name"):
        train(mixed, tmp_path / "m", head=Unnamed())
    assert not (tmp_path / "m").exists()


def test_examples_that_teach_nothing_are_refused(examples, tmp_path):
    with pytest.raises(arm.UserError, match="examples must hold a labelled state"):
        train([], tmp_path / "m")
    with pytest.raises(arm.UserError, match=r"must be trees, labelled trees or traj.*got str"):
        train(["a game"], tmp_path / "m")
    rollout = arm.Rollout(trajectory=examples["logged"][0])
    with pytest.raises(arm.UserError, match=r"got Rollout, whose trajectory is rollout\."):
        train([rollout], tmp_path / "m")
    answer = arm.BestOfN(task=rollout.trajectory.task, rollouts=(rollout,), scores=(0.0,), chosen=0)
    with pytest.raises(arm.UserError, match=r"got BestOfN, .*\[rollout\.trajectory for rollout in"):
        train([answer], tmp_path / "m")
    tree = examples["trees"][0]
    failed = dataclasses.replace(tree, iterations=(), error="environment 'x': it broke")
    with pytest.raises(arm.UserError, match=r"1 of 1 ended by an error, the first: .*it broke"):
        train([failed], tmp_path / "m")
    step = examples["logged"][0].steps[0]
    paid = dataclasses.replace(step, transition=dataclasses.replace(step.transition, reward=2.0))
    rich = dataclasses.replace(examples["logged"][0], steps=(paid,))
    with pytest.raises(arm.UserError, match="to an outcome within 0 and 1"):
        train([rich], tmp_path / "m")


def test_a_new_model_learns_faster_than_a_pretrained_one(whole, examples, tmp_path):
    started = tmp_path / "started"
    train(examples["logged"], started, init=write_tiny_policy(tmp_path / "policy"))
    for folder, rate in ((whole, 1e-3), (started, 1e-5)):
        settings = json.loads((folder / "training.json").read_text())
        assert settings["optimizer"]["learning_rate"] == rate
