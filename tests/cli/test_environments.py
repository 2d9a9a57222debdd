"""`agentrm envs`: list, check, play."""

from __future__ import annotations

import dataclasses
import io
import json

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
        (["play", "maze", "--task", "-1"], "must not be negative"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main(["envs", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
