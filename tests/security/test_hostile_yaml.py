"""Configurations of any content: read, or refused in one line, and nothing is executed."""

from __future__ import annotations

import pathlib
import random
import time

import pytest
from hostile_cases import MANY, NAMES, damaged, harmless, is_visible, refusal

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.load_config import load_config
from benchmarks.hostile_texts import random_text

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)
ATTACKS = (
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/object/new:subprocess.Popen [['touch', 'executed']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary aGVsbG8=",
    "!<tag:yaml.org,2002:python/object/apply:eval> ['1']",
    "!include /etc/passwd",
    "!!timestamp 2001-01-01",
    "!!set {a, b}",
    "&a [*a]",
    "&a {b: *a}",
    "{<<: {a: 1}}",
    "? [1, 2]\n: 3",
    "[" * 500 + "]" * 500,
    "9" * 5_000,
    "1e400",
    ".nan",
    "-.inf",
    "0x" + "f" * 4_000,
    "1:2:3:4:5:6",
    "|\n  " + "x" * 10_000,
    "'\\0'",
    '"\\ud83d"',
    "*unknown",
    "%TAG ! tag:x\n---\na",
    "- - - - - a",
    "\t",
    "\ufeff",
)


def outcome(path: pathlib.Path) -> str:
    """`read` or `refused`; a refusal is one line that shows no control character."""
    message = refusal(lambda: plain(load_config(path)))
    if message is None:
        return "read"
    assert is_visible(message)
    assert "\n" not in message
    assert len(message) < 2000
    return "refused"


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
@pytest.mark.parametrize("where", ["seed: {}", "environments: {}", "{}", "sft: {{fit: {}}}"])
def test_tags_and_aliases_execute_nothing(tmp_path, monkeypatch, attack, where):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text("environments: [{name: maze}]\n" * (where != "{}") + where.format(attack))
    with harmless(tmp_path):
        assert outcome(path) == "refused"
    assert [each.name for each in tmp_path.iterdir()] == ["run.yaml"]


def test_alias_bombs_are_refused_at_once(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(BOMB + "environments: [{name: maze}]\nplugins: *a39\n")
    began = time.monotonic()
    with pytest.raises(UserError, match="more than 10,000 keys and values"):
        load_config(path)
    assert time.monotonic() - began < 20


@MANY
def test_shipped_configurations_with_damage(tmp_path, monkeypatch, cases):
    monkeypatch.chdir(tmp_path)
    rng, path = random.Random(1), tmp_path / "run.yaml"
    shipped = [(CONFIGS / name).read_bytes() for name in ("tiny.yaml", "quickstart.yaml")]
    found = {"read": 0, "refused": 0}
    with harmless(tmp_path):
        for _ in range(cases // 3):
            content = rng.choice(shipped)
            for _ in range(rng.randrange(1, 4)):
                content = _with_attack(rng, content)
            path.write_bytes(content)
            found[outcome(path)] += 1
    assert found["refused"] > cases / 6


def _with_attack(rng: random.Random, content: bytes) -> bytes:
    """A line's value becomes a tag, a name or a text; or bytes are damaged."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    head, colon, _ = lines[at].partition(b": ")
    value = rng.choice((rng.choice(ATTACKS), rng.choice(NAMES), random_text(rng)))
    lines[at] = head + (colon or b": ") + value.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("key", ["rewards: [{}]", "evaluate: {{methods: [{}]}}"])
def test_names_are_no_paths(tmp_path, name, key):
    """Names of reward models and methods become folders of a run."""
    path = tmp_path / "run.yaml"
    quoted = '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'
    path.write_text("environments: [{name: maze}]\n" + key.format(quoted))
    with harmless(tmp_path):
        assert outcome(path) == "refused"
