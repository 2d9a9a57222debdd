"""Configuration files: layers, and mistakes answered by one line with key, file and line."""

from __future__ import annotations

import pathlib

import pytest

from agentrm_jax.cli.config import RunConfig
from agentrm_jax.cli.load_config import load_config, make_parser
from agentrm_jax.core.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def load(path: pathlib.Path, *overrides: str) -> RunConfig:
    return load_config(make_parser("agentrm run", ""), path, overrides)


@pytest.fixture
def written(tmp_path: pathlib.Path):
    def write(text: str) -> pathlib.Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_file_loads(path: pathlib.Path) -> None:
    assert load(path).environments


def test_a_file_says_only_what_differs_and_is_overridden(written) -> None:
    path = written("environments:\n- name: maze\nsft:\n  fit:\n    length: 77\n    batch_size: 3\n")
    config = load(path, "--sft.fit.batch_size=5", "--evaluate.beam.beam_width=2")
    assert config.sft.fit.length == 77
    assert config.sft.fit.batch_size == 5
    assert config.evaluate.beam.beam_width == 2
    assert config.explore == RunConfig(environments=config.environments).explore


def test_layers(written, tmp_path: pathlib.Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("seed: 9\n")
    assert load(written("environments: [{name: maze}]\nseed: 1\n"), f"--config={over}").seed == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nsed: 3\n", "line 2: unknown key sed; did you mean seed?"),
        ("sft:\n  fit:\n    lenth: 3\n", "line 3: unknown key sft.fit.lenth; did you mean length?"),
        ("environments:\n- nam: maze\n", "line 2: unknown key environments.nam"),
        ("environments:\n- name: maze\nseed: x\n", "line 3: seed: Expected"),
        ("environments:\n- name: maze\nsft:\n  fit:\n    length: -3\n", "line 5: fit.length: must"),
        ("environments: [\n", "not YAML"),
        ("sft: 3\n", "line 1: sft: expected keys and values"),
        ("seed: 3\nseed: 4\n", "line 2: seed is set a second time"),
        ("- 3\n", "line 1: expected keys and values"),
        ("seed: 3\n", "environments: name at least one"),
        ("environments:\n- name: maze\n- name: maze\n", "line 1: environments: each may be named"),
        (
            "environments: [{name: maze}]\ntrain_policy: false\n",
            "line 2: train_policy: false needs",
        ),
        ("environments: [{name: maze}]\nevaluate: {methods: [best]}\n", "unknown method 'best'"),
    ],
)
def test_mistakes(written, text: str, message: str) -> None:
    path = written(text)
    with pytest.raises(UserError) as error:
        load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if "line" in message:
        assert str(error.value).startswith(f"{path}, line ")


def test_mistakes_on_the_command_line(written) -> None:
    path = written("environments:\n- name: maze\n")
    for override, message in (
        ("--sft.fit.length=x", "sft.fit.length: Expected"),
        ("--sft.fit.length=-3", "fit.length: must be at least 1"),
        ("--sft.fit.lenth=3", "unrecognized arguments: --sft.fit.lenth=3"),
    ):
        with pytest.raises(UserError, match=message):
            load(path, override)


def test_a_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.yaml")
