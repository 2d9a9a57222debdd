"""The section `reward_options`: reward models with options of their own, and their traits."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_keys import keys_help
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.reward_ensembles import Ensemble
from agentrm_jax.pipeline.reward_kinds import Explicit, ImplicitPair
from agentrm_jax.pipeline.stages import STAGES, depends_on, stages_of
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import flat
from agentrm_jax.testing.models import write_tiny_policy, write_tiny_reward_model

TEXT = """\
environments: [{name: maze}]
rewards: [explicit, both, pair, low]
train_rm: {head: {kind: quantile}}
reward_options:
  both: {kind: ensemble, of: [explicit, implicit], scale: standard, beta: 1.0}
  pair: {kind: implicit_pair, policy: rl, reference: base, reduction: last}
  low: {kind: explicit, model: other, quantile: 0.25}
  explicit: {quantile: 0.1}
"""


@pytest.fixture
def load(tmp_path: pathlib.Path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_config(path, overrides)


def test_names_have_the_options_of_their_kinds(load, tmp_path) -> None:
    config: RunConfig = load()
    assert config.reward("both") == Ensemble(of=("explicit", "implicit"), scale="standard", beta=1)
    assert config.reward("pair") == ImplicitPair(policy="rl", reference="base", reduction="last")
    assert config.reward("low") == Explicit(model="other", quantile=0.25)
    assert config.reward("explicit") == Explicit(quantile=0.1)
    assert [name for name, _ in config.used_rewards] == [
        "explicit", "implicit", "both", "pair", "low",
    ]  # fmt: skip
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(plain(config), sort_keys=False))
    assert load_config(resolved, ()) == config


def test_an_ensemble_trains_what_its_members_need(load) -> None:
    def stages(*overrides: str) -> set[str]:
        return {stage.name for stage in stages_of(load(*overrides))}

    assert {"train-rm", "train-implicit"} <= stages("--rewards=[both]")
    assert "train-implicit" not in stages("--rewards=[explicit]")
    assert not {"train-rm", "train-implicit", "explore"} & stages("--rewards=[low, pair]")
    nested = ["--rewards=[nested]", "--reward_options.nested={kind: ensemble, of: [both, low]}"]
    assert {"train-rm", "train-implicit"} <= stages(*nested)


def test_traits_are_those_of_the_members(load) -> None:
    judged = load("--reward_options.wise={kind: ensemble, of: [low, judge], scale: rank}")
    assert judged.reward_traits("wise").compares
    assert not judged.reward_traits("both").compares
    ranked = load("--reward_options.both.scale=rank")
    assert ranked.reward_traits("both").compares
    assert load().reward_traits("low").scores_actions
    assert not load().reward_traits("both").scores_actions
    assert not judged.uses_kind("judge")  # it is described, and not used
    used = load("--rewards=[low, wise]", "--reward_options.wise={kind: ensemble, of: [low, judge]}")
    assert used.uses_kind("judge")


def test_an_evaluation_depends_on_the_options(load, tmp_path) -> None:
    """Without options on no new key: folders of earlier versions still fit their configuration."""
    evaluate = next(stage for stage in STAGES if stage.name == "evaluate")
    assert flat(depends_on(load(), evaluate))["reward_options.both.beta"] == 1.0
    path = tmp_path / "plain.yaml"
    path.write_text("environments: [{name: maze}]\n")
    needed = flat(depends_on(load_config(path, ()), evaluate))
    assert not [key for key in needed if key.startswith("reward_options")]


@pytest.mark.parametrize("name", ["calibrate", "evaluate"])
def test_the_options_decide_what_is_calibrated_and_evaluated(load, name) -> None:
    methods = "--evaluate.methods=[adaptive_n]"
    stage = next(stage for stage in STAGES if stage.name == name)
    before = depends_on(load(methods), stage)
    assert before == depends_on(load(methods), stage)
    assert before != depends_on(load(methods, "--reward_options.both.beta=2"), stage)
    assert before != depends_on(load(methods, "--evaluate.score_at=[action]"), stage)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("both.kind=enseble", "unknown kind of reward model 'enseble'; did you mean ensemble"),
        ("both.of=[explicit, both]", "both.of must not name both, which would be its own member"),
        ("both.of=[explicit, x]", "both.of must be one of both, ensemble, explicit, "),
        ("both.of=[explicit]", "both.of must name at least two reward models, each once"),
        ("both.of=[explicit, judge]", "both.scale must be rank or none, because judge compares"),
        ("both.of=[explicit, ensemble]", "both.of must not name ensemble, which has no default"),
        ("both.beta=-1", "both.beta must be at least 0"),
        ("both.bta=1", "unknown key reward_options.both.bta; did you mean beta?"),
        ("both.weights=[1]", "both.weights must be 2 numbers, one for each name in of"),
        ("other={beta: 1}", "other.kind is missing; must be one of ensemble, explicit, "),
        ("judge={kind: explicit}", "judge must have another name, because judge is a kind"),
        ("random={kind: explicit}", "random is a name that must be letters, digits and _, and"),
        ("low.quantile=1.5", "low.quantile must be at most 1|low.quantile must be below 1"),
        ("other={kind: implicit_pair, policy: a}", "other.reference is missing"),
        ("pair.reduction=first", "pair.reduction must be one of sum, mean, min, max, last"),
        ("low=3", "reward_options.low must be keys and values"),
    ],
)
def test_mistakes(load, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(f"--reward_options.{override}")
    assert "reward_options" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--rewards=[ensemble]"], "must not name ensemble, which has no default for of; name"),
        (["--rewards=[low, x]"], r"rewards must be one of both, ensemble, explicit, .* low, pair"),
        (["--train_rm.head.kind=mse"], r"explicit.quantile must be left out, because the head MSE"),
        (
            ["--rewards=[both]", "--reward_options.both.scale=rank"],
            "rewards must begin with another kind than both, which compares",
        ),
        (
            ["--rewards=[both]", "--evaluate.beam.score_at=action"],
            "score_at must be observation because rewards begins with both",
        ),
        (
            ["--rewards=[b]", "--reward_options.b={kind: ensemble, of: [low, pair], "
             "scale: standard}"],
            "b.scale must be rank or none, because this run has no training trajectories",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_run(load, overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        load(*overrides)


def test_missing_checkpoints_are_named_before_anything_runs(load, tmp_path) -> None:
    policy = write_tiny_policy(tmp_path / "policy") / "model"
    reward = write_tiny_reward_model(tmp_path / "reward") / "model"
    given = ["--rewards=[pair, low]", "--engine.context=256", "--evaluate.sampling.max_tokens=10"]

    def check(*overrides: str) -> None:
        config = load(*given, *(f"--reward_options.{each}" for each in overrides))
        Workspace(config=config, directory=tmp_path / "run").models.check_given()

    both = [f"pair.policy={policy}", f"pair.reference={policy}"]
    with pytest.raises(UserError, match=r"reward_options.pair.policy names .*nowhere"):
        check(f"pair.policy={tmp_path / 'nowhere'}", f"pair.reference={policy}")
    with pytest.raises(UserError, match=r"reward_options.low.model names .*nowhere"):
        check(*both, f"low.model={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"reward_options.pair.reference names .*kind|reference"):
        check(f"pair.policy={policy}", f"pair.reference={reward}")
    with pytest.raises(UserError, match=r"reward_options.low.quantile must be left out, because"):
        check(*both, f"low.model={reward}")
    check(*both, f"low={{kind: explicit, model: {reward}, quantile: null}}")


def test_the_keys_of_each_kind_are_listed() -> None:
    text = keys_help(RunConfig)
    for key in ("reward_options.NAME.of", "reward_options.NAME.quantile", "NAME.reference"):
        assert key in text
