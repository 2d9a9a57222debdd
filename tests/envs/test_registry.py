"""Environments found by entry point, from distributions written into a temporary folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import end_reveals_outcome, environment_names, load_family

GUIDE = Path(__file__).parents[2] / "docs" / "start" / "environment.md"

FAMILY = """
class Family:
    name = "NAME"
    pooled = False
    metric = "success rate"
    def missing(self): return None
    def counts(self): return {}
    def kinds(self): return ("only",)
    def tasks(self, split, *, kinds, n, seed=0): return []
    def prompt(self): ...
    def create(self): ...
    def demonstrate(self, task): return None
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes a module and a distribution that registers objects of it; nothing else."""
    load_family.cache_clear()

    def written(module: str, source: str, points: dict[str, str], distribution: str = "") -> None:
        distribution = distribution or f"dist-of-{module}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text(
            "\n".join(["[agentrm_jax.environments]", *lines]) + "\n"
        )
        monkeypatch.delitem(sys.modules, module, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    yield written
    load_family.cache_clear()


def test_built_in_environments_are_registered():
    assert {"babyai", "maze", "pddl"} <= set(environment_names())
    assert environment_names() == sorted(environment_names())


def test_own_environment_needs_no_change_of_the_package(install):
    install("own_a", FAMILY.replace("NAME", "own-a"), {"own-a": "own_a:Family"})
    assert "own-a" in environment_names()
    family = load_family("own-a")
    assert family.kinds() == ("only",)
    assert load_family("own-a") is family


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(
        UserError, match=r"'babyay': not registered; did you mean babyai\?"
    ) as error:
        load_family("babyay")
    assert all(name in str(error.value) for name in environment_names())
    with pytest.raises(UserError) as error:
        load_family("zzzzzz")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError"),
        ("class Family:\n    def __init__(self): raise ValueError('a\\nb')", "ValueError: a b"),
        (FAMILY.replace("NAME", "own-b").replace("def prompt", "def prompts"), "lacks prompt of"),
        (FAMILY.replace("NAME", "own-b").replace("pooled = False", "pass"), "lacks pooled of"),
        (FAMILY.replace("NAME", "other"), "calls itself 'other'"),
    ],
)
def test_unusable_object_is_named_with_its_distribution(install, source, what):
    install("own_b", source, {"own-b": "own_b:Family"}, distribution="someones-games")
    with pytest.raises(UserError) as caught:
        load_family("own-b")
    message = str(caught.value)
    assert "someones-games: own_b:Family" in message
    assert "'own-b'" in message
    assert what in message
    assert "\n" not in message


def test_name_claimed_twice(install):
    install("own_c", FAMILY.replace("NAME", "own-c"), {"own-c": "own_c:Family"})
    install("own_d", FAMILY.replace("NAME", "own-c"), {"own-c": "own_d:Family"})
    with pytest.raises(
        UserError, match=r"registered by dist-of-own_[cd]: .* and dist-of-own_[cd]: "
    ):
        load_family("own-c")


def test_no_environment_module_imports_jax():
    code = (
        "import sys; from agentrm_jax.envs import registry, pool, worker, data_directory;"
        "registry.load_family('babyai'); print([m for m in sys.modules if 'jax' in m.split('.')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("workers", [0, 1])
def test_the_guide_s_example(install, workers):
    """The code in docs/start/environment.md runs as printed, here and in a worker."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    code = dict(blocks)
    entry = re.search(r'environments"\]\n(\S+) = "(\S+)"', code["toml"])
    assert entry is not None
    name, target = entry.groups()
    pooled = code["python"].replace("pooled = False", f"pooled = {workers > 0}")
    install(target.split(":")[0], pooled, {name: target})

    family = load_family(name)
    train = family.tasks("train", kinds=family.kinds(), n=30)
    test = family.tasks("test", kinds=family.kinds(), n=30)
    assert train[:10] == family.tasks("train", kinds=family.kinds(), n=10)
    assert len({task.problem for task in train}) == 30
    assert not {task.problem for task in train} & {task.problem for task in test}
    pool = EnvPool(workers=workers)
    try:
        for task, started in zip(train, pool.reset(train), strict=True):
            assert not isinstance(started, EnvironmentFailure)
            handle, _ = started
            demonstration = family.demonstrate(task)
            assert demonstration is not None
            (nonsense,) = pool.branch([(handle, "I do not know")])
            assert not isinstance(nonsense, EnvironmentFailure)
            assert not nonsense[1].valid
            rewards = []
            for step in demonstration:
                (transition,) = pool.step([(handle, step.action)])
                assert not isinstance(transition, EnvironmentFailure)
                rewards.append(transition.reward)
            assert transition.done
            assert transition.success
            assert sum(rewards) == 1.0
    finally:
        pool.close()


def test_environments_declare_whether_the_end_tells_the_outcome():
    wordings = list(load_family("babyai").wordings)
    names = ("maze", "babyai", "pddl", f"babyai@{wordings[0]}", "webshop", "toolquery")
    assert [end_reveals_outcome(name) for name in names] == [True] * 4 + [None] * 2
    assert end_reveals_outcome("babyai@silent") is False


def test_the_end_of_a_maze_tells_its_outcome():
    """What the maze declares is what its texts say: only a success ends with its own sentence."""
    family = load_family("maze")
    [task] = family.tasks("test", kinds=family.kinds(), n=1)
    episode = family.create()
    episode.reset(task)
    answers = [episode.step(turn.action) for turn in family.demonstrate(task)]
    assert [answer.observation == "Success" for answer in answers] == [a.success for a in answers]
    assert answers[-1].success
