"""The tutorial: every command of its page runs, in order, with three updates of training."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from agentrm_jax.pipeline.reward_model import RewardModel
from agentrm_jax.pipeline.trajectory_files import read_trajectories

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "start" / "tutorial.md"
DRIVER = """
import pathlib, runpy, sys
import agentrm_jax as arm
whole = arm.FitConfig
arm.FitConfig = lambda **given: whole(**{**given, "num_updates": 3})
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).resolve().parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script as Python does, but for the number of updates."""


def commands() -> list[list[str]]:
    """The words of each command of the page."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory) -> pathlib.Path:
    """A folder like a clone in which the quickstart has run."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "runs").mkdir()
    (folder / "runs" / "quickstart").symlink_to(finished)
    return folder


@pytest.fixture(scope="module")
def printed(folder) -> dict[str, list[str]]:
    """The lines that each script prints, by its name."""
    lines = {}
    for program, script, *arguments in commands():
        assert program == "python"
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, script, *arguments],
            cwd=folder, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines[pathlib.Path(script).stem] = done.stdout.splitlines()
    return lines


def test_the_page_has_five_scripts(printed) -> None:
    assert list(printed) == ["score_log", "desk", "train_desk", "search_desk", "serve_desk"]


def test_a_log_is_scored_as_the_model_scores_it(printed, finished) -> None:
    heads = [line for line in printed["score_log"] if not line.startswith(" ")]
    falls = [line for line in printed["score_log"] if line.startswith(" ")]
    assert len(heads) == 8
    assert falls
    for line in falls:
        before, after = map(float, re.findall(r"-?\d+\.\d{3}", line)[:2])
        assert after <= before
    model = RewardModel.load(finished)
    scored = model.score_steps(read_trajectories(finished / "eval" / "greedy"))
    expected = {
        each.task_id: f"outcome {each.outcome:.2f}, score {each.score:.3f}" for each in scored
    }
    assert dict(head.split(": ") for head in heads) == expected


def test_the_environment_pays_for_both_halves(printed) -> None:
    assert [line.partition(" ")[0] for line in printed["desk"]] == [
        "0.5",
        "0.0",
        "0.0",
        "1.0",
        "0.5",
    ]


def test_training_shows_values_and_scores(printed, folder) -> None:
    first, title, *states = printed["train_desk"]
    assert re.fullmatch(r"120 trees, \d{3} states with a value", first)
    assert title == "value and score of states:"
    assert len(states) == 6
    assert (folder / "runs" / "desk" / "model").is_dir()


def test_searches_are_compared(printed) -> None:
    rows = [line.split("  ")[0] for line in printed["search_desk"]]
    assert rows == [
        "method", "best of 5", "beam 3x6", "random of 5", "shortest of 5", "oracle of 5"
    ]  # fmt: skip


def test_the_server_scores_every_conversation(printed, folder) -> None:
    state, *ends = printed["serve_desk"]
    assert re.fullmatch(r"A customer complains about order \d{3}\. It is [a-z ]+\.", state)
    scores = [float(end.split()[0]) for end in ends]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert {end.partition(" ")[2] for end in ends} == {"refund", "replace", "decline"}
