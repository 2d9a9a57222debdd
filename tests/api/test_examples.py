"""The examples of the documentation, run as a user would."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

import agentrm_jax as arm
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.model_folders import write_prompts
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing import GUESS_PROMPT, Guess, guess_policy, guess_tasks
from agentrm_jax.train.fit import FitConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
TUTORIAL = ("score_log.py", "desk.py", "train_desk.py", "search_desk.py", "serve_desk.py")
"""Run by `tests/cli/test_tutorial.py`."""
TINY = ModelConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=48
)


def run(*command: object, folder: pathlib.Path) -> str:
    """Runs a command in a folder; returns what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str, *arguments: object, folder: pathlib.Path) -> str:
    return run(EXAMPLES / name, *arguments, folder=folder)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> pathlib.Path:
    """A reward model of another environment, trained for three updates."""
    with arm.EnvPool({"guess": Guess}) as envs:
        logged = [r.trajectory for r in arm.rollouts(guess_policy, envs, guess_tasks(8))]
    folder = tmp_path_factory.mktemp("reward") / "model"
    fit = FitConfig(num_updates=3, batch_size=4, length=512)
    arm.train_reward_model(logged, folder, init=TINY, prompts={"guess": GUESS_PROMPT}, fit=fit)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> pathlib.Path:
    """An untrained policy for mazes."""
    folder = tmp_path_factory.mktemp("policy")
    [task] = load_family("maze").tasks("train", kinds=("generated",), n=1)
    tokenizer = train_tokenizer([json.dumps(dict(task.spec)), "move up"], TINY.vocab_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = models.fresh_policy(TINY, tokenizer, 2048, "float32", mesh, 0)
    models.save(folder / "model", "policy", model)
    write_prompts(folder, {"maze": None})
    return folder


def test_each_fits_on_a_page():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    tutorial = {lengths.pop(name) for name in TUTORIAL}
    assert max(tutorial) < 60, tutorial
    assert len(lengths) == 6
    assert max(lengths.values()) <= 40, lengths


def test_environment_policy_and_best_of_n_take_twenty_lines():
    source = (EXAMPLES / "best_of_n.py").read_text()
    needed = source[source.index("class Guess") : source.index("    beams = ")].splitlines()
    assert len([line for line in needed if line.strip()]) <= 20


def test_best_of_n_and_beam_with_everything_of_ones_own(reward_model, tmp_path):
    said = example("best_of_n.py", reward_model, folder=tmp_path)
    rows = [line.split("  ")[0] for line in said.splitlines()]
    assert rows == [
        "method",
        "best of 5",
        "beam 3x3",
        "random of 5",
        "shortest of 5",
        "oracle of 5",
    ]


def test_a_selection_rule_as_an_argument(policy, tmp_path):
    lines = example("puct.py", policy, "maze", folder=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["UCB", "PUCT"]
    assert all("4 trees" in line and " 0 labelled" not in line for line in lines)


def test_a_method_from_outside_has_its_own_row(policy, reward_model, tmp_path):
    settings = (
        ROOT / "configs" / "tiny.yaml", "--output", tmp_path / "run",
        f"--policy={policy / 'model'}", "--train_policy=false",
        f"--reward_model={reward_model / 'model'}", "--rewards=[explicit]",
        f"--plugins=[{EXAMPLES / 'lookahead.py'}]", "--evaluate.methods=[greedy, lookahead]",
        "--evaluate.options.lookahead.depth=2", "--evaluate.num_tasks=2",
    )  # fmt: skip
    run("-m", "agentrm_jax.cli.main", "evaluate", *settings, folder=tmp_path)
    rows = json.loads((tmp_path / "run" / "eval" / "lookahead" / "results.json").read_text())
    assert {row["method"] for row in rows} == {"lookahead"}
    run("-m", "agentrm_jax.cli.main", "report", *settings, folder=tmp_path)
    assert "lookahead" in (tmp_path / "run" / "report.html").read_text()


def test_a_value_head_from_outside(tmp_path):
    scores, reason = example("two_hot_head.py", tmp_path / "out", folder=tmp_path).splitlines()
    assert len(json.loads(scores)) == 3
    assert "cannot be exported: its value is the mean of a softmax" in reason
    stored = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    assert stored["config"]["value_head"] == {"kind": "two_hot", "outputs": 21}


def test_a_reward_model_of_logged_trajectories(tmp_path):
    logs = [
        {
            "id": str(i),
            "goal": f"My order {i} is late.",
            "turns": [
                ["Thought: ask.\nAction: Which one?", "That one."],
                ["Action: Sorry.", "OK."],
            ],
            "outcome": i % 3 / 2,
        }
        for i in range(6)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, logs)))
    said = example("logged_trajectories.py", "log.jsonl", "out", folder=tmp_path)
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["support/0", "0.0"], ["support/1", "0.5"], ["support/2", "1.0"]
    ]  # fmt: skip
