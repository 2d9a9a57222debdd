"""Open sections, plugins, and keys of earlier versions; on a small configuration of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import pytest
import yaml

from agentrm_jax.core.errors import UserError, section
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.registry import Registry
from agentrm_jax.pipeline.config_values import defaults, plain, upgraded
from agentrm_jax.pipeline.load_config import load_as, located
from agentrm_jax.runtime.run_directory import flat

RULES: Registry = Registry("tests.no_such_group", "selection rule")
HEADS: Registry = Registry("tests.no_such_group", "value head")
METHODS: Registry = Registry("tests.no_such_group", "method")


class Rule:
    pass


@RULES.register("ucb")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UCB(Rule):
    exploration: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, exploration="[0, inf)")


@RULES.register("puct")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PUCT(Rule):
    exploration: float = 1.25
    root: int = 3


@HEADS.register("mse")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MSE:
    huber: float = 1.0


@HEADS.register("hl_gauss")
@dataclasses.dataclass(frozen=True, kw_only=True)
class HLGauss:
    bins: int = 51
    low: float = 0.0


@METHODS.register("lookahead")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookahead:
    depth: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    selection: Annotated[Rule, RULES] = dataclasses.field(default_factory=UCB)
    concurrency: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explore:
    search: Search = dataclasses.field(default_factory=Search)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRm:
    head: Annotated[MSE, HEADS] = dataclasses.field(default_factory=MSE)
    length: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    methods: Sequence[str] = ("greedy",)
    options: Annotated[Mapping[str, object], METHODS] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    plugins: Sequence[str] = ()
    context: int = 64
    explore: Explore = dataclasses.field(default_factory=Explore)
    train_rm: TrainRm = dataclasses.field(default_factory=TrainRm)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)


@pytest.fixture
def load(tmp_path: pathlib.Path):
    def load(text: str, *overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_as(Config, path, overrides)

    return load


def test_a_kind_decides_the_other_keys(load) -> None:
    config = load("explore: {search: {selection: {kind: puct, root: 7}}}")
    assert config.explore.search.selection == PUCT(root=7)
    assert load("{}").explore.search.selection == UCB()
    by_default = load("explore: {search: {selection: {exploration: 2.0}}}")
    assert by_default.explore.search.selection == UCB(exploration=2.0)
    overridden = load(
        "explore: {search: {selection: {kind: ucb, exploration: 2.0}}}",
        "--explore.search.selection.kind=puct",
        "--explore.search.selection.root=1",
    )
    assert overridden.explore.search.selection == PUCT(exploration=2.0, root=1)
    options = load("evaluate: {methods: [lookahead], options: {lookahead: {depth: 5}}}")
    assert options.evaluate.options == {"lookahead": Lookahead(depth=5)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "explore:\n search:\n  selection:\n   kind: puckt\n",
            r"run.yaml, line 4: explore.search.selection is not known: unknown selection rule "
            r"'puckt'; did you mean puct\? known: puct, ucb",
        ),
        (
            "explore:\n search:\n  selection:\n   kind: ucb\n   root: 3\n",
            r"line 5: unknown key explore.search.selection.root; must be one of exploration",
        ),
        (
            "explore:\n search:\n  selection:\n   exploration: -1\n",
            r"line 4: explore.search.selection.exploration must be at least 0 \(got -1.0\)",
        ),
        ("explore: {search: {selection: puct}}", r"selection must be keys and values \(got 'puct'"),
        (
            "evaluate:\n options:\n  lookahead:\n   depht: 1\n",
            r"line 4: unknown key evaluate.options.lookahead.depht; did you mean depth\?",
        ),
        (
            "evaluate:\n options:\n  lookahed: {}\n",
            r"line 3: evaluate.options.lookahed is not known: unknown method 'lookahed'; did you",
        ),
        ("evaluate: {options: {lookahead: 3}}", r"options.lookahead must be keys and values"),
    ],
)
def test_mistakes_in_open_sections(load, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(text)


def test_values_hold_kinds_and_load_again(load) -> None:
    config = load(
        "explore: {search: {selection: {kind: puct}}}\n"
        "evaluate: {options: {lookahead: {depth: 5}}}\n"
    )
    values = plain(config)
    assert values["explore"]["search"]["selection"] == {
        "kind": "puct", "exploration": 1.25, "root": 3,
    }  # fmt: skip
    assert values["evaluate"] == {"methods": ["greedy"], "options": {"lookahead": {"depth": 5}}}
    again = load(yaml.safe_dump(values))
    assert again == config
    assert plain(again) == values


def test_defaults_name_the_default_kind() -> None:
    known = defaults(Config(explore=Explore(search=Search(selection=PUCT(root=9)))))
    assert known["explore.search.selection.kind"] == "ucb"
    assert known["explore.search.selection.root"] == 3
    assert known["train_rm.head.kind"] == "mse"


def test_keys_of_earlier_versions_are_read(load) -> None:
    old = "explore: {search: {exploration: 2.0, num_slots: 9}}"
    assert load(old).explore.search == Search(selection=UCB(exploration=2.0), concurrency=9)
    assert load("{}", "--explore.search.num_slots=9").explore.search.concurrency == 9
    head = "train_rm: {head: {kind: hl_gauss, bins: 7, low: 1.0, huber: 2.0, sigma: 0.5}}"
    assert load(head).train_rm.head == HLGauss(bins=7, low=1.0)
    with pytest.raises(UserError, match=r"unknown key train_rm.head.binz"):
        load("train_rm: {head: {kind: mse, binz: 3}}")
    both = "explore: {search: {exploration: 2.0, selection: {kind: puct, exploration: 1.0}}}"
    with pytest.raises(UserError, match=r"exploration is the earlier name of .*; delete it"):
        load(both)


def test_records_of_earlier_versions_are_compared() -> None:
    recorded = {
        "explore": {"search": {"exploration": 0.5}},
        "train_rm": {"head": {"kind": "hl_gauss", "bins": 51, "low": 0.0, "huber": 1.0}},
    }
    assert upgraded(flat(recorded), Config) == {
        "explore.search.selection.exploration": 0.5,
        "train_rm.head.kind": "hl_gauss",
        "train_rm.head.bins": 51,
        "train_rm.head.low": 0.0,
    }
    now = flat(plain(Config(train_rm=TrainRm(head=HLGauss()))))
    assert upgraded(now, Config) == now


PLUGIN = """\
from __future__ import annotations
import dataclasses
from tests_open_sections import RULES, Rule

@RULES.register("thompson")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Thompson(Rule):
    samples: int = 1
"""


def test_plugins_are_imported_before_other_keys_are_checked(load, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tests_open_sections", sys.modules[__name__])
    plugin = tmp_path / "my_rules.py"
    plugin.write_text(PLUGIN)
    text = f"explore: {{search: {{selection: {{kind: thompson}}}}}}\nplugins: ['{plugin}']\n"
    rule = load(text).explore.search.selection
    assert type(rule).__name__ == "Thompson"
    assert load(text).explore.search.selection == rule  # the file is imported once
    assert plain(load(text))["explore"]["search"]["selection"] == {"kind": "thompson", "samples": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py", r"line 1: plugins names .*absent.py: no such file"),
        ("broken.py", r"plugins names '.*broken.py' cannot be imported \(ZeroDivisionError: "),
        ("no_such_module_here", r"plugins names 'no_such_module_here' cannot be imported \(Module"),
        ("far.py", r"cannot be imported \(ModuleNotFoundError: No module named 'far_away'\)$"),
        ("near.py", r"named 'next_to_it'\); its folder is not searched: set PYTHONPATH=\.$"),
    ],
)
def test_plugins_that_cannot_be_imported(load, tmp_path, monkeypatch, name, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "far.py").write_text("import far_away\n")
    (tmp_path / "near.py").write_text("import next_to_it\n")
    (tmp_path / "next_to_it.py").touch()
    with pytest.raises(UserError, match=message):
        load(f"plugins: [{name}]\n")


def test_later_errors_are_located(load) -> None:
    config = load("train_rm:\n  length: 8\nexplore:\n  search:\n    concurrency: 3\n")

    def fails(error: UserError, key: str | None = None) -> str:
        within = contextlib.nullcontext() if key is None else section(key)
        with pytest.raises(UserError) as raised, located(config), within:
            raise error
        assert raised.value.value == error.value
        return str(raised.value)

    too_short = UserError(field="length", value=8, expected="at least 9")
    assert str(too_short) == "length must be at least 9 (got 8)"
    ends = "run.yaml, line 2: train_rm.length must be at least 9 (got 8)"
    assert fails(too_short).endswith(ends)
    assert fails(too_short, "train_rm").endswith(ends)
    assert fails(UserError("is bad", field="explore.search.concurrency")).endswith(
        "run.yaml, line 5: explore.search.concurrency is bad"
    )
    assert fails(UserError("is bad", field="nowhere")) == "nowhere is bad"
    assert fails(UserError("no field at all")) == "no field at all"
    # A key that no file sets is at the section in which it would stand.
    by_default = fails(UserError("is bad", field="exploration"))
    assert "line 4: explore.search.selection.exploration is bad" in by_default
    assert load("{}") == Config()  # where keys were set makes no difference
    assert dataclasses.asdict(load("{}")) == dataclasses.asdict(Config())
