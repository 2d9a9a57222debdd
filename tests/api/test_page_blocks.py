"""The Python blocks of README, start pages and guides: every one runs as printed.

The blocks of a page run in order, in one namespace that the test has prepared. A block marked `py`
is a fragment, an alternative to what the page does: it runs in a copy of the namespace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from agentgym_server import running
from report_cases import episodes

import agentrm_jax as arm
from agentrm_jax.core.errors import UserError
from agentrm_jax.envs import registry
from agentrm_jax.evaluation.episodes import write_episodes
from agentrm_jax.model import hugging_face
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.search.methods import METHODS
from agentrm_jax.testing import (
    Guess,
    guess_policy,
    guess_scorer,
    guess_tasks,
    tiny_model,
    tiny_reward_model,
    tiny_state,
    write_tiny_policy,
)
from agentrm_jax.train.fit import FitConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "start").rglob("*.md")),
    *sorted((ROOT / "docs" / "guides").rglob("*.md")),
]
ELSEWHERE = {
    ("extending.md", "rule.py"): "tests/api/test_documentation.py",
    ("extending.md", "method.py"): "tests/api/test_documentation.py",
    ("extending.md", "head.py"): "tests/api/test_documentation.py",
    ("extending.md", "kind.py"): "tests/api/test_documentation.py",
    ("extending.md", "server.py"): "tests/api/test_documentation.py",
    ("extending.md", "family.py"): "tests/api/test_documentation.py",
    ("outside.md", "lake.py"): "tests/api/test_outside_guide.py",
    ("reward_models.md", "import agentrm_jax as arm"): "tests/cli/test_score.py",
    ("servers.md", "import agentrm_jax as arm"): "tests/clients/test_run.py",
    ("serving.md", 'client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")'): (
        "tests/serve/test_gateway.py"
    ),
}
"""Page and name of the blocks that do not run here: the test file that runs them, or the reason."""

TINY = ModelConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=48
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a page.

    Attributes:
      line: The number of its first line.
      fragment: Whether it is marked `py`.
      name: Its title, or its first line.
      text: The program.
    """

    line: int
    fragment: bool
    name: str
    text: str


@dataclasses.dataclass(kw_only=True)
class Prepared:
    """What a page finds before its first block.

    Attributes:
      names: The namespace.
      addresses: Addresses in the page, and those that answer here.
      check: Called after each block with the block and its namespace.
    """

    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    addresses: dict[str, str] = dataclasses.field(default_factory=dict)
    check: Callable[[Block, dict[str, Any]], None] = lambda block, names: None


def blocks(page: pathlib.Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    found, text = [], page.read_text()
    for match in re.finditer(r"^```(python|py)\b(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        title = re.search(r'title="(.*?)"', match[2])
        name = title[1] if title else match[3].strip().splitlines()[0]
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(line=line, fragment=match[1] == "py", name=name, text=match[3]))
    return found


def run_here(page: pathlib.Path) -> list[Block]:
    return [block for block in blocks(page) if (page.name, block.name) not in ELSEWHERE]


@contextlib.contextmanager
def for_readme(folder: pathlib.Path) -> Iterator[Prepared]:
    yield Prepared()


@contextlib.contextmanager
def for_python(folder: pathlib.Path) -> Iterator[Prepared]:
    """A run with a policy and a reward model, and a policy in a model folder."""
    run = folder / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "config.resolved.yaml").write_text(
        "environments: [{name: maze, prompt: false}]\n"
        "engine: {context: 512, cache_tokens: 8192, decode_rows: 8, extend_rows: 4}\n"
    )
    models.save(run / "sft" / "model", "policy", tiny_model())
    models.save(run / "reward" / "explicit" / "model", "reward", tiny_model(reward=True))
    write_tiny_policy(folder / "models" / "smollm2")

    def check(block: Block, names: dict[str, Any]) -> None:
        if block.name.startswith("policy = "):
            [rollout] = arm.rollouts(names["policy"], names["envs"], names["tasks"][:1])
            assert rollout.trajectory.steps
        if block.name.startswith("scorer = "):
            states = [rollout.trajectory for rollout in names["samples"]]
            assert len(names["scorer"].score([states])[0]) == 6

    yield Prepared(check=check)


@contextlib.contextmanager
def for_environment(folder: pathlib.Path) -> Iterator[Prepared]:
    """The page's fragments are parts of its class, and are checked as such."""
    names: dict[str, Any] = {}
    load_family = functools.cache(registry.load_family.__wrapped__)
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("agentrm_page_guessing")
        patch.setitem(sys.modules, module.__name__, module)
        point = EntryPoint("guessing", f"{module.__name__}:Guessing", registry.GROUP)
        patch.setattr(registry, "entry_points", lambda **_: [point])
        patch.setattr(registry, "load_family", load_family)

        def check(block: Block, own: dict[str, Any]) -> None:
            if not block.fragment:
                return
            load_family.cache_clear()
            module.Guessing = type("Guessing", (own["Guessing"], names["Guessing"]), {})  # type: ignore[attr-defined]
            if "action_key" in block.text:
                assert registry.action_key("guessing", " Guess  5") == "guess 5"
                return
            family = load_family("guessing@ask")
            [task] = family.tasks("train", kinds=("small",), n=1)
            game = family.create()
            game.reset(task)
            assert [game.step(text).valid for text in ("guess 5", "is it 5 ?")] == [False, True]

        yield Prepared(names=names, check=check)


@contextlib.contextmanager
def for_models(folder: pathlib.Path) -> Iterator[Prepared]:
    """A Hugging Face directory."""
    write_tiny_policy(folder / "policy")
    arm.export_model(folder / "policy", "policy", folder / "exported")
    names = {
        "directory": folder / "exported",
        "other": folder / "other",
        "mesh": make_mesh(MeshConfig()),
        "tokenizer": tiny_model().tokenizer,
    }

    def check(block: Block, names: dict[str, Any]) -> None:
        again = hugging_face.load_params(folder / "other", names["config"], "bfloat16")
        assert (again["embed"] == names["params"]["embed"]).all()

    yield Prepared(names=names, check=check)


@contextlib.contextmanager
def for_outside(folder: pathlib.Path) -> Iterator[Prepared]:
    """A server that answers as AgentGym's do."""

    def check(block: Block, names: dict[str, Any]) -> None:
        assert len(names["trees"]) == 20

    with running() as server:
        yield Prepared(
            names={"arm": arm, "policy": lambda state, n, seed: ["Action: add 1"] * n},
            addresses={"http://127.0.0.1:36001": server.url},
            check=check,
        )


@contextlib.contextmanager
def for_reward_models(folder: pathlib.Path) -> Iterator[Prepared]:
    def check(block: Block, names: dict[str, Any]) -> None:
        states = [tiny_state(1, 2), tiny_state(1, 3)]
        assert len(names["blind"].score([states])[0]) == 2
        assert len(names["mean_of_actions"].score([states])[0]) == 2

    yield Prepared(names={"arm": arm, "model": tiny_reward_model()}, check=check)


@contextlib.contextmanager
def for_statistics(folder: pathlib.Path) -> Iterator[Prepared]:
    """Two runs that were evaluated."""
    for seed in (0, 1):
        path = folder / "runs" / f"seed{seed}" / "eval" / "all" / "episodes.jsonl"
        path.parent.mkdir(parents=True)
        own = [dataclasses.replace(each, seed=seed) for each in episodes(3, seed)]
        write_episodes(path, own)

    def check(block: Block, names: dict[str, Any]) -> None:
        assert {row["n_seeds"] for row in names["rows"]} == {2}
        assert names["compared"]

    yield Prepared(check=check)


@contextlib.contextmanager
def for_test_time(folder: pathlib.Path) -> Iterator[Prepared]:
    def check(block: Block, names: dict[str, Any]) -> None:
        gated = names["Gated"]
        tasks = guess_tasks(8, max_steps=4)
        with arm.EnvPool({"guess": Guess}) as envs:
            with pytest.raises(UserError, match="has no value"):
                arm.evaluate(["gated"], guess_policy, guess_scorer, envs, tasks)
            policy, scorer = arm.FunctionPolicy(guess_policy), arm.FunctionScorer(guess_scorer)
            found = [
                sum(
                    answer.env_steps
                    for answer in gated(least=least).run(policy, scorer, envs, tasks, 0)
                )
                for least in (0.0, 2.0)
            ]
        assert found[0] < found[1]
        assert "gated" in METHODS.names()

    yield Prepared(check=check)


PREPARED = {
    "README.md": for_readme,
    "docs/start/environment.md": for_environment,
    "docs/start/python.md": for_python,
    "docs/guides/models.md": for_models,
    "docs/guides/outside.md": for_outside,
    "docs/guides/reward_models.md": for_reward_models,
    "docs/guides/statistics.md": for_statistics,
    "docs/guides/test_time.md": for_test_time,
}
"""What each page with blocks finds before them."""


@pytest.fixture
def quick_training(monkeypatch):
    """Reward models of programs are tiny and trained for three updates."""
    fit = FitConfig(num_updates=3, batch_size=4, length=512)
    train = functools.partial(arm.train_reward_model, init=TINY, fit=fit)
    monkeypatch.setattr(arm, "train_reward_model", train)


def test_every_block_runs_here_or_elsewhere() -> None:
    """And the tables have no block, page or test that does not exist."""
    pages = {str(page.relative_to(ROOT)) for page in PAGES if run_here(page)}
    assert pages == set(PREPARED)
    names = [(page.name, block.name) for page in PAGES for block in blocks(page)]
    assert set(ELSEWHERE) <= set(names)
    for (page, name), test in ELSEWHERE.items():
        assert names.count((page, name)) == 1, name
        assert page in (ROOT / test).read_text(), test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_have_a_fence(page: pathlib.Path) -> None:
    """No block that is only indented holds Python, where this file does not find it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^ {4,}(?:import \w|from [\w.]+ import).*", text, re.MULTILINE) == []
    assert re.findall(r"^ +```(?:py|python)\b.*", page.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("name", PREPARED)
def test_blocks_run_as_printed(name, quick_training, monkeypatch, tmp_path, capsys) -> None:
    page = ROOT / name
    monkeypatch.chdir(tmp_path)
    with PREPARED[name](tmp_path) as prepared:
        for block in run_here(page):
            text = block.text
            for address, answering in prepared.addresses.items():
                text = text.replace(address, answering)
            program = compile("\n" * (block.line - 1) + text, name, "exec", dont_inherit=True)
            names = dict(prepared.names) if block.fragment else prepared.names
            exec(program, names)
            prepared.check(block, names)
    if name in ("README.md", "docs/start/python.md"):
        rows = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
        assert {"best of 5", "oracle of 5"} <= rows
