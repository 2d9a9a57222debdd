"""Configuration files: layers, and mistakes answered by one line with key, file and line."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np
import pytest
import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.pipeline.config import EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.config_values import (
    MOVED,
    default_of,
    open_section,
    plain,
    types_of,
)
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.runtime.run_directory import flat
from agentrm_jax.search.methods import METHODS
from agentrm_jax.train.fit import FitConfig
from agentrm_jax.train.optimizer import OptimizerConfig

MAZE = EnvironmentConfig(name="maze")

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def load(path: pathlib.Path, *overrides: str) -> RunConfig:
    return load_config(path, overrides)


@pytest.fixture
def written(tmp_path: pathlib.Path):
    def write(text: str) -> pathlib.Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "experiments"],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
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
        (
            "environments:\n- nam: maze\n",
            "line 2: unknown key environments.0.nam; did you mean name?",
        ),
        ("environments:\n- name: maze\nseed: x\n", "line 3: seed must be a whole number (got 'x')"),
        (
            "environments:\n- name: maze\nsft:\n  fit:\n    length: -3\n",
            "line 5: sft.fit.length must be at least 1 (got -3)",
        ),
        ("environments: [\n", "not YAML"),
        ("sft: 3\n", "line 1: sft must be keys and values (got '3')"),
        ("seed: 3\nseed: 4\n", "line 2: seed is set a second time"),
        ("- 3\n", "line 1: expected keys and values"),
        ("seed: 3\n", "line 1: environments must name at least one environment, each once"),
        (
            "environments:\n- name: maze\n- name: maze\n",
            "line 1: environments must name at least one environment, each once",
        ),
        (
            "environments: [{name: maze}]\ntrain_policy: false\n",
            "line 2: train_policy must be true unless `policy` is given",
        ),
        (
            "environments: [{name: maze}]\nexperts: {imported: [x], mistakes: 0.5}\n",
            "line 2: experts.mistakes must be 0 with imported trajectories",
        ),
        (
            "environments: [{name: maze}]\nevaluate: {methods: [best]}\n",
            f"line 2: evaluate.methods must be one of {', '.join(METHODS.names())} (got 'best')",
        ),
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
        ("--sft.fit.length=x", r"^sft\.fit\.length must be a whole number \(got 'x'\)$"),
        ("--sft.fit.length=-3", r"^sft\.fit\.length must be at least 1 \(got -3\)$"),
        ("--sft.fit.lenth=3", r"^unknown key sft\.fit\.lenth; did you mean length\?$"),
        ("--seed", "^--seed needs a value: --seed=VALUE$"),
        ("seed=3", "^unexpected argument 'seed=3'; write --KEY=VALUE$"),
        ("--sft=3", r"^sft must be keys and values \(got '3'\)$"),
        ("--policy=", "^policy must not be empty$"),
        ("--seed=[", r"^seed must be a whole number \(got '\['\)$"),
    ):
        with pytest.raises(UserError, match=message):
            load(path, override)


def test_a_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.yaml")


def test_overrides_are_read_as_people_write_them(written) -> None:
    path = written("environments:\n- name: maze\npolicy: old\n")
    config = load(
        path, "--policy=runs/a #1", "--seed", "7", "--sft.optimizer.learning_rate=1e-4",
        "--evaluate.methods=[greedy, beam]", "--sft.fit={length: 9}", "--sft.fit.batch_size=4",
        "--environments=[{name: maze, kinds: [easy], prompt: no}]", "--reward_model='a b'",
    )  # fmt: skip
    assert config.policy == "runs/a #1"
    assert config.reward_model == "a b"
    assert config.seed == 7
    assert config.sft.optimizer.learning_rate == 1e-4
    assert config.evaluate.methods == ("greedy", "beam")
    assert (config.sft.fit.length, config.sft.fit.batch_size) == (9, 4)
    assert config.environments == (EnvironmentConfig(name="maze", kinds=("easy",), prompt=False),)
    assert load(path, "--policy=null").policy is None
    assert load(path, "--policy=123").policy == "123"
    assert load(path, "--seed=4294967295").seed == 4294967295


@pytest.mark.parametrize("text", ["sft: &fit {fit: &x {length: 5}}\ntrain_rm: {fit: *x}\n"])
def test_aliases_are_read(written, text: str) -> None:
    config = load(written("environments: [{name: maze}]\n" + text))
    assert (config.sft.fit.length, config.train_rm.fit.length) == (5, 5)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbfsed: 1\n", "line 1: unknown key sed; did you mean seed?"),
        (BOMB.encode(), "line 1: more than 10,000 keys and values"),
        (b"environments: &e [*e]\n", "line 1: nested more than 20 levels deep"),
        (b"a: &a {a: *a}\n", "line 1: nested more than 20 levels deep"),
        (b"[" * 3000 + b"]" * 3000, "line 1: nested more than 20 levels deep"),
        (b"{a: " * 3000 + b"}" * 3000, "line 1: nested more than 20 levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)).encode(), "line 21: nested more than 20"),
        (b"seed: 1\n" * 5_001, "line 5000: more than 10,000 keys and values"),
        (b"? [a, b]\n: 1\n", "line 1: a key must be a name, not a list or a mapping"),
        (b"? {a: b}\n: 1\n", "line 1: a key must be a name, not a list or a mapping"),
        (b"x: &x {seed: 1}\n<<: *x\n", "line 2: merge keys (<<) are not read"),
        (b"1: 2\n", "line 1: unknown key 1; must be one of plugins, environments"),
        (b"seed: " + b"9" * 5000, "line 1: seed must be a whole number (got '999"),
        (b"seed: 1\n\nseed\0: 1\n", "line 3: not YAML (character 0x0)"),
        ("seed: 1\n".encode("utf-16"), "not text in UTF-8; save it as UTF-8"),
        (bytes(range(256)), "not text in UTF-8; save it as UTF-8"),
        (b"seed:\t1\n", "line 1: not YAML (found character '\\t' that cannot start any token)"),
        (b"seed: !!python/object/apply:os.getcwd []\n", "line 1: the tag python/object/apply:os"),
        (b"seed: !mine 3\n", "line 1: the tag !mine is not read"),
        (b"seed: 2020-01-01\n", "line 1: seed must be a whole number (got '2020-01-01')"),
        (b"---\nseed: 1\n---\nseed: 2\n", "line 3: not YAML"),
        (b'"\\UFFFFFFFF": 1\n', "line 1: not YAML"),
        (b"seed: *nowhere\n", "line 1: not YAML (found undefined alias 'nowhere')"),
        (b"x" * 300_000, "a configuration has at most 262,144 bytes"),
        (b"\x1b[31m: 1\n", "line 1: not YAML (character 0x1b)"),
        (b'"\\e[31mseed": 1\n', "line 1: unknown key \\x1b[31mseed; did you mean seed?"),
        (b"", "line 1: environments must name at least one environment, each once"),
        (b"null\n", "line 1: expected keys and values"),
    ],
    ids=range(28),
)
def test_hostile_files_get_one_line_at_once(tmp_path, data: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}")
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_what_is_no_file_gets_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)$"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"a configuration has at most 262,144 bytes$"):
        load(pathlib.Path("/dev/zero"))
    with pytest.raises(UserError, match=r"cannot be read \(embedded null byte\)$"):
        load(pathlib.Path("a\0b"))


def keys_of(kind, prefix: str = ""):
    """Every dotted key of a configuration, its type and its default."""
    types = types_of(kind)
    for field in dataclasses.fields(kind):
        inner, key = types[field.name], f"{prefix}{field.name}"
        yield key, inner, field.default
        opened = open_section(inner)
        if opened is not None and not opened.by_name:
            yield from keys_of(type(default_of(field)), f"{key}.")
            continue
        item = (typing.get_args(inner) or (None,))[0]
        if dataclasses.is_dataclass(inner):
            yield from keys_of(inner, f"{key}.")
        elif dataclasses.is_dataclass(item):
            yield from keys_of(item, f"{key}.0.")


KEYS = {key: (kind, default) for key, kind, default in keys_of(RunConfig)}
WRONG = (
    ".nan", ".inf", "-.inf", "nan", "1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "1e300",
    "1e-300", "-1", "0", "3.5", '""', "[]", "{}", "null", "true", "[1]", "[null]", "[[]]", "{a: 1}",
    "2020-01-01", '"\\0"', '"a\\nb"', '"\\ud83d"', "x",
)  # fmt: skip


def text_with(key: str, value: str) -> str:
    """A configuration that sets one key; the value is on its last line."""
    lines = [] if key.startswith("environments") else ["environments: [{name: maze}]"]
    names = key.replace("environments.0.", "environments.- ").split(".")
    for depth, name in enumerate(names):
        if name.startswith("- ") and name != "- name":
            lines.append("- name: maze")
            name = f"  {name[2:]}"
        lines.append(f"{'  ' * depth if '- ' not in name and key[:3] != 'env' else ''}{name}:")
    lines[-1] += f" {value}"
    return "\n".join(lines)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_refuses_wrong_values_with_its_name_and_line(written, key: str) -> None:
    kind, default = KEYS[key]
    for value in WRONG:
        text = text_with(key, value)
        path = written(text)
        try:
            config = load(path)
        except UserError as error:
            message = str(error)
            assert message.startswith(f"{path}, line "), message
            if key in message:
                assert message.startswith(f"{path}, line {len(text.splitlines())}: "), message
            else:  # another key of the section does not go with this one, or it is not YAML
                assert key.rpartition(".")[0] in message or "tag" in message, message
            assert message.isprintable()
            assert len(message) < 400
            continue
        found: object = config
        for name in key.split("."):
            found = found[0] if name == "0" else getattr(found, name)
        if isinstance(found, float):
            assert np.isfinite(np.float32(found)), value
            assert found == 0 or np.float32(found) != 0, value
        if isinstance(found, int):
            assert -1 <= found < 2**31, value
        if isinstance(found, str):
            assert found.isprintable(), value
            assert found or default == "", value
        if found is None:
            assert type(None) in typing.get_args(kind), value


OLD = """\
environments: [{name: maze}]
explore: {search: {exploration: 0.75, num_slots: 3}}
sample: {slots: 4}
evaluate: {slots: 5, beam: {num_slots: 6}}
train_rm: {head: {kind: mse, bins: 51, low: 0.0, high: 1.0, sigma: 0.75, huber: 0.25}}
"""
NEW = """\
environments: [{name: maze}]
explore: {search: {selection: {kind: ucb, exploration: 0.75}, concurrency: 3}}
sample: {concurrency: 4}
evaluate: {concurrency: 5, beam: {concurrency: 6}}
train_rm: {head: {kind: mse}}
"""


def test_files_of_earlier_versions_load(written) -> None:
    config = load(written(OLD))
    assert config == load(written(NEW))
    values = flat(plain(config))
    assert set(MOVED.values()) <= set(values)
    assert not set(MOVED) & set(values)
    assert load(written(yaml.safe_dump(plain(config)))) == config


def test_a_configuration_made_in_python_is_checked_as_well() -> None:
    for make, message in (
        (lambda: FitConfig(batch_size=0), r"^batch_size must be at least 1 \(got 0\)$"),
        (lambda: Sampling(temperature=float("nan")), r"^temperature must be a finite number"),
        (lambda: OptimizerConfig(b1=10), r"^b1 must be below 1 \(got 10\)$"),
        (
            lambda: OptimizerConfig(weight_decay=-0.1),
            r"^weight_decay must be at least 0 \(got",
        ),
        (lambda: RunConfig(environments=[MAZE], seed=-1), r"^seed must be at least 0 \(got -1\)$"),
        (lambda: RunConfig(environments=[MAZE], seed=2**32), "^seed must be at most 4294967295 "),
        (
            lambda: RunConfig(environments=[MAZE], workers=10**6),
            r"^workers must be at most 4096 \(got 1000000\)$",
        ),
    ):
        with pytest.raises(UserError, match=message):
            make()
