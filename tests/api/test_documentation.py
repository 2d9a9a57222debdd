"""The documentation: the parts in it work, and the modules, files and names in it exist.

Its other Python blocks run in `test_page_blocks.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import re
import shlex
import sys
from importlib.metadata import EntryPoint

import pytest

import agentrm_jax as arm
from agentrm_jax.cli.commands import COMMANDS
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.family_options import TakesOptions
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs import registry
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.plugins import import_plugin
from agentrm_jax.testing import GUESS_PROMPT, Guess, guess_policy, guess_scorer, guess_tasks
from agentrm_jax.train.fit import FitConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "agentrm_jax"
FLOORS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md"}
    | set((ROOT / "docs").rglob("*.md"))
)
"""All pages but `dev/LOG.md` and the changelog, which name modules of earlier versions."""
CONFIG = ROOT / "configs" / "tiny.yaml"
TINY = ModelConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=48
)


def programs(page: pathlib.Path) -> str:
    """The Python blocks of a page but the fragments, which are marked `py`, in order."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def quoted(page: pathlib.Path) -> set[str]:
    """Texts in backticks, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`([^`\n]+)`", text))


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that the site and GitHub give to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        slug = re.sub(r"[\s-]+", "-", name)
        found.add(f"{slug}_1" if slug in found else slug)
    return found


def test_the_readme_s_program_takes_fifteen_lines():
    assert len([line for line in programs(ROOT / "README.md").splitlines() if line]) <= 15


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The files of docs/guides/extending.md, imported as plugins, by their name."""
    text = (ROOT / "docs" / "guides" / "extending.md").read_text()
    files = dict(re.findall(r'```python title="(\w+)\.py"\n(.*?)```', text, re.DOTALL))
    assert set(files) == {"rule", "method", "head", "kind", "server", "family"}
    folder = tmp_path_factory.mktemp("plugins")
    for name, program in files.items():
        (folder / f"{name}.py").write_text(program)
        import_plugin(str(folder / f"{name}.py"))
    yield {name: sys.modules[f"agentrm_plugin_{name}"] for name in files}
    for name in files:
        del sys.modules[f"agentrm_plugin_{name}"]


def test_a_selection_rule(guide):
    config = load_config(CONFIG, ["--explore.search.selection.kind=greedy_after"])
    assert config.explore.search.selection == guide["rule"].GreedyAfter(visits=2)
    rule = guide["rule"].GreedyAfter(visits=3)
    with arm.EnvPool({"guess": Guess}) as envs:
        tasks = guess_tasks(2)
        trees = arm.explore(guess_policy, envs, tasks, selection=rule, num_iterations=4)
    assert all(tree.num_nodes > 4 for tree in trees)


def test_a_method(guide):
    with arm.EnvPool({"guess": Guess}) as envs:
        method = guide["method"].FewestSteps
        methods = {"of one": method(n=1), "of five": method(n=5)}
        compared = arm.evaluate(
            methods, guess_policy, guess_scorer, envs, guess_tasks(12, max_steps=5)
        )
    one, five = (method.score.mean for method in compared.methods)
    assert five > one


def test_a_value_head(guide, tmp_path):
    with arm.EnvPool({"guess": Guess}) as envs:
        logged = [r.trajectory for r in arm.rollouts(guess_policy, envs, guess_tasks(8))]
    fit = FitConfig(num_updates=3, batch_size=4, length=512)
    head = guide["head"].Difference()
    model = arm.train_reward_model(logged, tmp_path / "model", init=TINY, head=head, fit=fit)
    assert len(model.score([logged[:3]])[0]) == 3


def test_a_reward_kind(guide):
    scorer = guide["kind"].Shortest().open(None)
    with arm.EnvPool({"guess": Guess}) as envs:
        [answer] = arm.best_of_n(guess_policy, scorer, envs, guess_tasks(1), n=4)
    lengths = [len(rollout.trajectory.steps) for rollout in answer.rollouts]
    assert answer.chosen == lengths.index(min(lengths))


def test_a_policy(guide):
    options = arm.PolicyOptions(
        seed=1, sampling=Sampling(), prompt_of=lambda task: GUESS_PROMPT, branches=(),
        concurrency=2, run_policy=lambda: pytest.fail("another agent acts"),
    )  # fmt: skip
    policy = guide["server"].Server(url="hello").open(options)
    with arm.EnvPool({"guess": Guess}) as envs:
        [rollout] = arm.rollouts(policy, envs, guess_tasks(1, max_steps=2))
    assert [step.action for step in rollout.trajectory.steps] == ["echo 5", "echo 7"]


def test_a_family_with_options(guide, monkeypatch):
    numbers = guide["family"].Numbers
    point = EntryPoint("numbers", f"{numbers.__module__}:Numbers", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [point])
    monkeypatch.setattr(registry, "load_family", registry.load_family.__wrapped__)
    assert isinstance(registry.load_family("numbers"), TakesOptions)
    small = registry.load_family("numbers@small").configured({"highest": 9})
    assert sum(small.counts().values()) == 9
    tasks = small.tasks("train", kinds=small.kinds(), n=20)
    assert {task.spec["highest"] for task in tasks} == {9}
    assert not {t.problem for t in tasks} & {t.problem for t in small.tasks("test", kinds=(), n=9)}
    with arm.EnvPool({"numbers@small": type(small.create())}) as envs:
        rollouts = list(arm.rollouts(guess_policy, envs, tasks))
    assert {rollout.trajectory.task.environment for rollout in rollouts} == {"numbers@small"}
    assert any(rollout.trajectory.outcome == 1.0 for rollout in rollouts)
    with pytest.raises(UserError, match=r"options\.higest is unknown; did you mean highest\?"):
        small.configured({"higest": 3})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    names = quoted(page)
    missing = [name for name in names if _is_path(name) and not _path_exists(name, page)]
    missing += [name for name in names if _is_module(name) and not _module_exists(name)]
    missing += [
        name
        for name in names
        if (match := re.fullmatch(r"arm\.(\w+)", name)) and match[1] not in arm.__all__
    ]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing += [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sections_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text())
    assert [
        f"{path}#{anchor}"
        for path, anchor in links
        if "://" not in path and anchor not in anchors(page.parent / path if path else page)
    ] == []


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words after `agentrm` of each command in the shell and indented blocks of a page."""
    found, text = [], page.read_text()
    indented = re.findall(r"^ {4}(agentrm (?:.*\\\n)*.*)", text, re.MULTILINE)
    for block in [*re.findall(r"```bash\n(.*?)```", text, re.DOTALL), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            parts = (part.partition(" #")[0] for part in re.split(r"&&|;", line))
            matches = (re.search(r"(?:^|\s|bin/)agentrm\s(.*)", part) for part in parts)
            found += [shlex.split(match[1], comments=True) for match in matches if match]
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_of_a_page_are_accepted(page):
    """Their arguments and keys; configurations that are not in the repository are not read."""
    for words in commands(page):
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)
        command = COMMANDS[name]
        given = command.parser().parse(words[len(name.split()) :])
        config = ROOT / str(getattr(given, "config", None))
        if command.takes_keys and given.overrides and config.is_file():
            keys = [re.sub(r"=[A-Z]{3,}$", "=a_name", key) for key in given.overrides]
            load_config(config, [key for key in keys if not key.startswith("--plugins")])


def test_the_site_has_every_page_and_program():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w/]+\.md", text[text.index("nav:") : text.index("exclude_docs:")])
    docs = ROOT / "docs"
    pages = [str(page.relative_to(docs)) for page in PAGES if docs in page.parents]
    assert sorted(listed) == sorted(pages)
    examples = docs / "examples"
    programs = {path.name for path in examples.glob("*.py")}
    assert set(re.findall(r"\]\((\w+\.py)\)", (examples / "index.md").read_text())) == programs


def test_figures_are_those_of_their_program():
    script = {"__file__": str(ROOT / "docs" / "figures" / "draw.py"), "__name__": "draw"}
    exec(pathlib.Path(script["__file__"]).read_text(), script)  # it is no module
    for name, draw in script["FIGURES"].items():
        assert (ROOT / "docs" / "figures" / name).read_text() == draw()


def test_a_wrong_name_is_found(tmp_path):
    page = tmp_path / "page.md"
    assert not _path_exists("search/no_such_module.py", page)
    assert not _module_exists("agentrm_jax.search.tree.no_such_name")
    assert not _module_exists("search.no_such_module")
    assert _module_exists("search.tree.advance")
    assert _module_exists("engine.cache_tokens")
    page.write_text(
        "# A page\n\n## `arm.beam_search`: *one*\n\n```sh\n# no heading\n```\n\n# A page\n"
    )
    assert anchors(page) == {"a-page", "armbeam_search-one", "a-page_1"}


@pytest.mark.parametrize(
    "page",
    [*(page for page in PAGES if page.parent.name != "reference"), CHANGELOG],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_lines_have_at_most_100_columns(page):
    """Tables and commands cannot be wrapped; the reference is generated."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda p: p.name
)
def test_tables_of_results_are_those_of_their_records(page):
    script = {"__file__": str(ROOT / "docs" / "results" / "render.py"), "__name__": "render"}
    exec(pathlib.Path(script["__file__"]).read_text(), script)  # it is no module
    assert script["rendered"](page.read_text()) == page.read_text()


def _is_path(name: str) -> bool:
    """Whether a text is the path of a file of the repository, such as `search/tree.py`."""
    match = re.fullmatch(r"([\w.-]+)/[\w./-]+\.(py|md|sh|yaml|html|pddl)", name)
    return match is not None and match[1] not in ("runs", "my", "models")


def _path_exists(name: str, page: pathlib.Path) -> bool:
    roots = [ROOT, PACKAGE, page.parent]
    if page.name == "engine.md":
        roots.append(PACKAGE / "engine")
    return any((root / name).exists() for root in roots)


def _is_module(name: str) -> bool:
    """Whether a text is a dotted name of the package, such as `search.tree.advance`."""
    match = re.fullmatch(r"(\w+)(\.\w+)+", name)
    return match is not None and match[1] in ("agentrm_jax", *FLOORS)


def _module_exists(name: str) -> bool:
    parts = name.removeprefix("agentrm_jax.").split(".")
    if parts[-1] in ("py", "json", "safetensors"):
        return True  # a file, such as `model.json`
    if f'"{name}"' in (ROOT / "pyproject.toml").read_text():
        return True  # a group of entry points
    return _is_key(parts) or _attribute_exists(parts)


def _is_key(parts: list[str]) -> bool:
    """Whether the parts are a key of the configuration, such as `engine.cache_tokens`."""
    config: object = load_config(CONFIG)
    for part in parts if parts[-1] != "kind" else parts[:-1]:  # `kind` of an open section
        if not (dataclasses.is_dataclass(config) and hasattr(config, part)):
            return False
        config = getattr(config, part)
    return True


def _attribute_exists(parts: list[str]) -> bool:
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            found: object = importlib.import_module(".".join(["agentrm_jax", *parts[:length]]))
            for part in parts[length:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False
