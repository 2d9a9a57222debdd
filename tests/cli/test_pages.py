"""The commands of README, start pages and guides: those that work offline run, page by page.

The folder in which a page's commands run looks like a clone in which the quickstart has run, with
the settings of `configs/tiny.yaml`. Words such as `CONFIG` and `PATH` are replaced, and sizes are
made smaller; all else is as printed.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint

import pytest
from cli_cases import CONFIG

from agentrm_jax.cli.main import main
from agentrm_jax.envs import registry
from agentrm_jax.pipeline.trajectory_files import read_trajectories

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("api", "clients", "envs")]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "start").rglob("*.md")),
    *sorted((ROOT / "docs" / "guides").rglob("*.md")),
]

NOT_RUN = {
    "plan configs/paper/llama3_8b_reward.yaml --stage train-rm --topology v5p:2x2x2": "tests/plan",
    "plan configs/paper/llama3_8b_h200.yaml --stage evaluate --topology h200:1 --profile": (
        "tests/plan"
    ),
    "plan configs/paper/llama3_8b_h200.yaml --topology h200:1 --stage sample "
    "--engine.decode_rows=40 --engine.weights=int8 --engine.kv=int8 --profile": "tests/plan",
    "experiment main_table": "an hour; at tiny size: tests/cli/test_experiments.py",
    "experiment main_table --seeds 0,1,2": "hours; at tiny size: tests/cli/test_experiments.py",
    "experiment main_table --size paper --policy=models/llama3_8b": "a model of 8B parameters",
    "launch slurm CONFIG --output /shared/runs/NAME --stage explore --hosts 16 --gpus 1": (
        "SLURM: tests/cli/test_launched_runs.py"
    ),
    "run CONFIG --output /local/runs/NAME --leases.enabled=true "
    "--leases.store=gs://BUCKET/runs/NAME": "a bucket: tests/cli/test_bucket_of_a_run.py",
    "run CONFIG --output OUT --distributed.coordinator=localhost:8476 "
    "--distributed.num_processes=2 --distributed.process_id=$i &": (
        "several processes: tests/cli/test_processes.py"
    ),
    "explore CONFIG --output RUN --mesh.tensor=2": (
        "a model that two devices can share: tests/engine/test_sharded_engine.py"
    ),
    "envs play alfworld --task 3": "a person plays: tests/cli/test_environments.py",
    "envs play agentgym@textcraft --config agentgym.yaml": (
        "a person plays: tests/envs/test_agentgym.py"
    ),
    "serve --reward-model runs/quickstart --policy http://127.0.0.1:8000 --port 8001": (
        "does not end: tests/serve/test_serve_process.py"
    ),
    "serve --reward-model runs/quickstart --policy runs/quickstart --port 8000": (
        "does not end: tests/serve/test_serve_process.py"
    ),
    "serve --reward-model exported/reward": "does not end: tests/serve/test_serve_process.py",
}
"""Commands that this test does not run, with the reason or the test that runs them."""

POLICY = "runs/quickstart/sft/model"
REWARD = "runs/quickstart/reward/explicit/model"
REPLACED = {
    "PATH": {
        "--policy=PATH": f"--policy={POLICY}",
        "--reward_model=PATH": f"--reward_model={REWARD}",
        "--reward_init=PATH": f"--reward_init={REWARD}",
    },
    "CONFIG": {"CONFIG": "configs/quickstart.yaml"},
    "RUN": {"RUN": "runs/RUN"},
    "FOLDER": {"--reward_model=FOLDER": f"--reward_model={REWARD}"},
    "MINE.yaml": {"MINE.yaml": "configs/quickstart.yaml"},
    "[NAME ...]": {"[NAME": "maze", "...]": "pddl"},
    "/shared/": {"/shared/runs/NAME": "shared/runs/NAME"},
}
"""Placeholders in commands and what replaces them."""
WORDS = {old: new for words in REPLACED.values() for old, new in words.items()}

SEARCH = (
    "--explore.num_tasks=3", "--explore.search.num_iterations=2",
    "--explore.search.expansion_width=2", "--explore.sampling.max_tokens=24",
)  # fmt: skip
EVALUATION = ("--evaluate.num_tasks=2", "--evaluate.methods=[greedy, best_of_n]")
TRAINING = ("--label.min_visits=1", "--train_rm.fit.num_updates=2")
EXPLICIT = ("--rewards=[explicit]",)
FROM = ("--from", "runs/quickstart")
OF_TINY = (
    "--environments=[{name: maze, prompt: false, max_steps: 4}]", "--engine.context=1024",
    "--engine.decode_rows=16", "--engine.extend_rows=8", "--engine.extend_tokens=32",
    "--engine.cache_tokens=32768", f"--policy={POLICY}", "--experts.num_tasks=20",
    "--train_rm.fit.batch_size=4", "--train_rm.fit.length=1024",
)  # fmt: skip
"""The settings of `configs/tiny.yaml`, over those of a page's own configuration."""

LOGGED = (*OF_TINY[1:], *TRAINING)
SERVED = OF_TINY[:6]

MORE = {
    "run configs/quickstart.yaml --output runs/gamma": EVALUATION,
    "run configs/quickstart.yaml --output runs/mine": (*FROM, *EVALUATION),
    "run configs/quickstart.yaml --output runs/rm": (*SEARCH, *TRAINING, *EXPLICIT, *EVALUATION),
    "evaluate configs/quickstart.yaml --output runs/eval": (*EXPLICIT, *EVALUATION),
    "run configs/quickstart.yaml --output runs/more": (*FROM, *EXPLICIT, *EVALUATION),
    "run configs/quickstart.yaml --output runs/both": (*FROM, *EVALUATION),
    "run configs/quickstart.yaml --output runs/puct": (
        *FROM, *SEARCH, *TRAINING, *EXPLICIT, *EVALUATION,
    ),
    "run MINE.yaml --output runs/webshop": (
        "--experts.num_tasks=1", "--sft.fit.num_updates=2", *SEARCH, *TRAINING, *EXPLICIT,
        *EVALUATION,
    ),
    "run configs/quickstart.yaml --output runs/guessing": (
        "--sft.fit.num_updates=2", *SEARCH, *TRAINING, *EXPLICIT, *EVALUATION,
    ),
    "run mine.yaml --output runs/mine": (*OF_TINY, *SEARCH, *TRAINING, *EVALUATION),
    "run configs/smollm2.yaml --output runs/smollm2": (
        *OF_TINY, "--sft.fit.num_updates=2", *SEARCH, *TRAINING, *EVALUATION,
    ),
    "explore configs/quickstart.yaml --output runs/other": SEARCH,
    "run agentgym.yaml": (
        *OF_TINY[1:], *SEARCH, *TRAINING, *EVALUATION, "--workers=0",
    ),
    "label logged.yaml": LOGGED,
    "train-rm logged.yaml": LOGGED,
    "explore served.yaml": (*SERVED, *SEARCH),
    "evaluate served.yaml": (*SERVED, *EVALUATION),
    "evaluate CONFIG --output RUN --engine.weights=int8": (
        f"--policy={POLICY}", "--train_policy=false", f"--reward_model={REWARD}", *EXPLICIT,
        *EVALUATION,
    ),
}  # fmt: skip
"""Options added to the commands that begin so; most of them make a run smaller."""

LOGS = [
    {
        "id": number,
        "reward": number / 2,
        "conversations": [
            {"from": "human", "value": "My parcel is late."},
            {"from": "gpt", "value": f"Action: {action}"},
            {"from": "human", "value": f"You did {action}."},
        ],
    }
    for number, action in enumerate(("shrug", "ask for the number", "send another"))
]


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of the commands of a page; see `test_documentation.commands`."""
    import test_documentation

    return test_documentation.commands(page)


def run_here(page: pathlib.Path) -> list[list[str]]:
    return [words for words in commands(page) if " ".join(words) not in NOT_RUN]


def titled(page: str) -> dict[str, str]:
    """The YAML files of a page, by their titles."""
    found = re.findall(r'```yaml title="([\w.]+)"\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    return dict(found)


def given(words: list[str]) -> list[str]:
    """A command as it runs here."""
    command = " ".join(words)
    more = [extra for start, extra in MORE.items() if command.startswith(start)]
    return [WORDS.get(word, word) for word in words] + [word for each in more for word in each]


@pytest.fixture
def clone(finished, tmp_path, monkeypatch) -> pathlib.Path:
    """The working folder."""
    (tmp_path / "configs").mkdir()
    for name in ("quickstart.yaml", "smollm2.yaml"):
        shutil.copy(CONFIG, tmp_path / "configs" / name)
    shutil.copytree(finished, tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def nothing(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield


@contextlib.contextmanager
def prepare_quickstart(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_conversations(folder)
    write_gguf(folder / "smollm2.gguf")
    yield


@contextlib.contextmanager
def prepare_model(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    (folder / "mine.yaml").write_text(titled("docs/start/model.md")["mine.yaml"])
    yield


@contextlib.contextmanager
def prepare_models(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Converts a model, since the page checks one before it says how to convert one."""
    write_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    arguments = (str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf"), "--to", "models/smollm2")
    assert main(["convert", *arguments]) == 0
    yield


@contextlib.contextmanager
def prepare_environment(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers the environment of the page, as its installation would."""
    text = (ROOT / "docs/start/environment.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (folder / "guessing.py").write_text(program)
    monkeypatch.syspath_prepend(str(folder))
    point = EntryPoint("guessing", "guessing:Guessing", registry.GROUP)
    found = registry.entry_points

    def entry_points(**asked: str):
        own = [point] if asked.get("name", "guessing") == "guessing" else []
        return [*own, *found(**asked)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    yield


@contextlib.contextmanager
def prepare_report(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("small", "large"):
        shutil.copytree(folder / "runs" / "quickstart", folder / "runs" / name)
    yield


@contextlib.contextmanager
def prepare_reward_models(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_conversations(folder)
    (folder / "runs" / "webshop").symlink_to(folder / "runs" / "quickstart")
    yield


@contextlib.contextmanager
def prepare_hosts(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copytree(folder / "runs" / "quickstart", folder / "shared" / "runs" / "NAME")
    yield


@contextlib.contextmanager
def prepare_outside(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starts a server that answers as AgentGym's do, and writes a log of trajectories."""
    from agentgym_server import running

    (folder / "logs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in LOGS))
    files = titled("docs/guides/outside.md")
    (folder / "logged.yaml").write_text(files["logged.yaml"])
    with running() as server:
        text = files["agentgym.yaml"].replace("http://127.0.0.1:36001", server.url)
        (folder / "agentgym.yaml").write_text(text)
        yield


@contextlib.contextmanager
def prepare_servers(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starts a server of a model."""
    from model_server import ModelServer

    (folder / "served.yaml").write_text(titled("docs/guides/servers.md")["served.yaml"])
    with ModelServer() as server:
        monkeypatch.setitem(WORDS, "--policy=http://127.0.0.1:8000", f"--policy={server.url}")
        yield


def write_conversations(folder: pathlib.Path) -> None:
    """Writes two of an expert's trajectories in mazes, in ETO's form."""
    items = []
    for number, trajectory in enumerate(read_trajectories(folder / "runs/quickstart/experts")[:2]):
        turns = [("human", trajectory.first_observation)]
        for step in trajectory.steps:
            turns += [("gpt", step.reply), ("human", step.transition.observation)]
        pairs = [{"from": speaker, "value": value} for speaker, value in turns[:-1]]
        items.append({"id": f"maze_{number}", "reward": 1.0, "conversations": pairs})
    (folder / "webshop_sft.json").write_text(json.dumps(items))


def write_gguf(path: pathlib.Path) -> None:
    """Writes a tiny model in the form of SmolLM2's GGUF file."""
    pytest.importorskip("gguf", reason="needs the extra [gguf]")
    from test_convert import V, tensors, write

    from agentrm_jax.data.tokenizer import train_tokenizer

    write(path, tensors(), train_tokenizer(["go to the red key 12, left of the blue ball"], V))


PREPARE: dict[str, Callable[..., contextlib.AbstractContextManager[None]]] = {
    "docs/start/quickstart.md": prepare_quickstart,
    "docs/start/model.md": prepare_model,
    "docs/start/environment.md": prepare_environment,
    "docs/guides/models.md": prepare_models,
    "docs/guides/outside.md": prepare_outside,
    "docs/guides/report.md": prepare_report,
    "docs/guides/reward_models.md": prepare_reward_models,
    "docs/guides/servers.md": prepare_servers,
    "docs/guides/several_hosts.md": prepare_hosts,
}
"""By page: what prepares its commands, besides the run and the configurations."""
SLOW = (
    "run configs/quickstart.yaml --output runs/gamma",
    "run configs/quickstart.yaml --output runs/mine",
    "run configs/quickstart.yaml --output runs/rm",
    "evaluate configs/quickstart.yaml --output runs/eval",
    "run configs/quickstart.yaml --output runs/more",
    "run configs/quickstart.yaml --output runs/both",
    "run configs/quickstart.yaml --output runs/puct",
    "demonstrate pddl --n 100",
    "run MINE.yaml --output runs/webshop",
    "run configs/quickstart.yaml --output runs/guessing",
    "run mine.yaml --output runs/mine",
    "run configs/smollm2.yaml --output runs/smollm2",
    "export runs/smollm2",
    "explore configs/quickstart.yaml --output runs/other",
    "eval-rm runs/other",
    "evaluate CONFIG --output RUN --engine.weights=int8",
    "run agentgym.yaml",
    "label logged.yaml",
    "train-rm logged.yaml",
    "score logs.jsonl --model runs/logged",
    "explore served.yaml",
    "evaluate served.yaml",
)
"""Beginnings of the commands that train, search or compile programs of their own."""


def test_the_tables_are_about_commands_of_pages() -> None:
    printed = [" ".join(words) for page in PAGES for words in commands(page)]
    assert len(printed) > 50
    assert [command for command in NOT_RUN if command not in printed] == []
    assert [s for s in MORE if not any(command.startswith(s) for command in printed)] == []
    assert [word for word in WORDS if not any(word in command for command in printed)] == []
    assert [s for s in SLOW if not any(command.startswith(s) for command in printed)] == []
    assert set(PREPARE) <= {str(page.relative_to(ROOT)) for page in PAGES}
    tests = {path for reason in NOT_RUN.values() for path in re.findall(r"tests/[\w/.]+", reason)}
    assert [path for path in tests if not (ROOT / path).exists()] == []


def is_slow(words: list[str]) -> bool:
    return " ".join(words).startswith(SLOW)


def run_commands(name: str, which: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for words in which:
        status = main(given(words))
        assert status == 0, (name, shlex.join(given(words)), capsys.readouterr().err)


NAMES = [str(page.relative_to(ROOT)) for page in PAGES if run_here(page)]


@pytest.mark.parametrize("name", [n for n in NAMES if not all(map(is_slow, run_here(ROOT / n)))])
def test_quick_commands_of_a_page_run(name, clone, monkeypatch, capsys) -> None:
    with PREPARE.get(name, nothing)(clone, monkeypatch):
        run_commands(name, [w for w in run_here(ROOT / name) if not is_slow(w)], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if any(map(is_slow, run_here(ROOT / n)))])
def test_all_commands_of_a_page_run(name, clone, monkeypatch, capsys) -> None:
    with PREPARE.get(name, nothing)(clone, monkeypatch):
        run_commands(name, run_here(ROOT / name), capsys)
