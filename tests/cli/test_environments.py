"""`agentrm envs`: list, check, play."""

from __future__ import annotations

import dataclasses
import io
import json
import sys

import pytest

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.maze import Maze
from agentrm_jax.envs.measuring import check
from agentrm_jax.envs.registry import environment_names, load_family


def test_list_names_every_environment(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["envs", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in environment_names())
    assert "endless" in out


def test_check_prints_rows_as_json(capsys):
    assert main(["envs", "check", "maze", "pddl", "--n", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["maze", "pddl"]
    keys = {"name", "ok", "reason", "reset_ms", "step_ms", "fork_ms", "expert"}
    for row in rows:
        assert row.keys() == keys
        assert (row["ok"], row["reason"], row["expert"]) == (True, "", 1.0)
        assert row["reset_ms"] > 0
        assert row["step_ms"] > 0
        assert row["fork_ms"] > 0


class Leaky(Maze):
    """Its forks are not copies."""

    def create(self):
        episode = super().create()
        return Shared(episode)


@dataclasses.dataclass
class Shared:
    episode: object

    def reset(self, task):
        return self.episode.reset(task)

    def step(self, action):
        return self.episode.step(action)

    def fork(self):
        return self


class Absent(Maze):
    def missing(self):
        return "the walls are not installed"


class Broken(Maze):
    def tasks(self, split, *, kinds, n, seed=0):
        raise UserError("grid.json: line 3 is empty")


class Raising(Maze):
    def demonstrate(self, task):
        raise ZeroDivisionError("one\ntwo")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (Leaky, "not independent of its fork"),
        (Absent, "the walls are not installed"),
        (Broken, "grid.json: line 3 is empty"),
        (Raising, "ZeroDivisionError: one two"),
    ],
)
def test_what_does_not_work_is_one_row_with_its_reason(family, reason):
    row = check(family(), 5)
    assert not row.ok
    assert reason in row.reason
    assert "\n" not in row.reason


def test_play(capsys, monkeypatch):
    family = load_family("maze")
    [task] = family.tasks("test", kinds=family.kinds(), n=1)
    plan = [turn.action for turn in family.demonstrate(task)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([f"Action: {plan[0]}", *plan[1:]])))
    assert main(["envs", "play", "maze"]) == 0
    out = capsys.readouterr().out
    assert "You are in a maze" in out
    assert "solved\nsuccess rate: 1.00\n" in out


def test_play_stops_at_an_empty_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["envs", "play", "maze", "--split", "paper", "--task", "24"]) == 0
    assert "maze/double_t/24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "mase"], "did you mean maze?"),
        (["play", "maze", "--split", "paper", "--task", "25"], "has 25 tasks, counted from 0"),
        (["play", "maze", "--task", "-1"], "must be at least 0"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main(["envs", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_check_prints_a_line_for_each_promise(capsys, monkeypatch):
    monkeypatch.setattr("agentrm_jax.cli.environments.named_family", lambda name: Wild())
    assert main(["envs", "check", "wild", "--n", "2"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("maze: ")]
    assert len(lines) == 8
    assert "maze: the same actions get the same answers: ok" in lines
    assert (
        "maze: no action raises, and texts and rewards are sound: BROKEN: RuntimeError: no "
        r"\x1b[2J" in lines
    )


class Wild(Maze):
    """It raises for what no expert says, and colours the terminal."""

    metric = "\x1b[31m[red]score[/red]"

    def create(self):
        return WildEpisode(super().create())


class WildEpisode(Shared):
    def step(self, action):
        if "[" in action:
            raise RuntimeError("no \x1b[2J")
        answer = self.episode.step(action)
        return dataclasses.replace(answer, observation="\x1b[2J\ud83d\ude00\x00\u202e\nseen")

    def fork(self):
        return WildEpisode(self.episode.fork())


def test_check_takes_a_class_of_the_working_folder(capsys, monkeypatch, tmp_path):
    (tmp_path / "mine_of_check.py").write_text("from agentrm_jax.envs.maze import Maze as Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert main(["envs", "check", "mine_of_check:Mine", "--n", "1"]) == 0
    assert "maze: an episode ends after max_steps: ok" in capsys.readouterr().out


def test_nothing_of_an_environment_reaches_the_terminal_raw(capsys, monkeypatch):
    monkeypatch.setattr("agentrm_jax.cli.environments.load_family", lambda name: Wild())
    monkeypatch.setattr("agentrm_jax.cli.environments.named_family", lambda name: Wild())
    monkeypatch.setattr("agentrm_jax.cli.environments.environment_names", lambda: ["wild\x1b[1m"])
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["envs", "list"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31m[red]score[/red]" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n\n"))
    assert main(["envs", "play", "wild"]) == 0
    out = capsys.readouterr().out
    assert "\\x1b[2J\U0001f600\\x00\\u202e\nseen" in out
    assert "\x1b" not in out


def test_play_shows_what_a_terminal_of_ascii_can_show(monkeypatch):
    monkeypatch.setattr("agentrm_jax.cli.environments.named_family", lambda name: Wild())
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n\n"))
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["envs", "play", "wild"]) == 0
    out.seek(0)
    assert r"\x1b[2J\U0001f600\x00\u202e" in out.read()


def test_an_environment_that_raises_ends_play_with_one_line(capsys, monkeypatch):
    monkeypatch.setattr("agentrm_jax.cli.environments.named_family", lambda name: Wild())
    monkeypatch.setattr("sys.stdin", io.StringIO("[\n"))
    assert main(["envs", "play", "wild"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert r"RuntimeError: no \x1b[2J" in error


@pytest.mark.parametrize("stdin", [None, io.StringIO()])
def test_play_without_input_ends(capsys, monkeypatch, stdin):
    if stdin is not None:
        stdin.close()
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["envs", "play", "maze"]) == 0
    assert "success rate: 0.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "maze", "--n", "-5"], "--n: must be at least 1 (got -5)"),
        (["check", "maze", "--n", "0"], "--n: must be at least 1 (got 0)"),
        (["check", "maze", "--n", "1000000000"], "--n: must be at most 100000 (got 1000000000)"),
        (["check", "no_such_module:Maze"], "cannot be loaded: ModuleNotFoundError"),
        (["play", "maze", "--task", "1000000000"], "--task: must be at most 100000"),
        (["play", "maze", "--seed=-1"], "--seed: must be at least 0 (got -1)"),
        (["play", "maze", "--seed", str(2**63)], "--seed: must be at most"),
        (["play", "maze", "--kinds", "x"], "maze has no kind 'x'"),
    ],
)
def test_numbers_out_of_range_are_one_line(capsys, arguments, message):
    assert main(["envs", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
