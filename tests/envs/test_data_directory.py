from pathlib import Path

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.data_directory import data_directory, require


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AGENTRM_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def test_named_by_the_variable(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("AGENTRM_DATA", str(home / "data"))
    assert data_directory() == home / "data"


def test_tilde_and_relative_names(home, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", "~/data")
    assert data_directory() == home / "data"
    monkeypatch.setenv("AGENTRM_DATA", "data")
    assert data_directory() == Path.cwd() / "data"


def test_cache_folder(home, monkeypatch):
    assert data_directory() == home / ".cache" / "agentrm_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert data_directory() == home / "elsewhere" / "agentrm_jax"


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_unusable_cache_variable_is_ignored(home, monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert data_directory() == home / ".cache" / "agentrm_jax"


def test_empty_variable_is_as_unset(home, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", "")
    assert data_directory() == home / ".cache" / "agentrm_jax"


def test_require_gives_the_path(home, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(home))
    (home / "tasks").mkdir()
    (home / "tasks" / "list.txt").write_text("1")
    assert require("tasks/list.txt", "example.org").read_text() == "1"
    assert require("tasks", "example.org").is_dir()


def test_require_says_what_is_missing_where_it_goes_and_where_it_is_had(home, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(home))
    with pytest.raises(UserError) as caught:
        require("tasks/list.txt", "https://example.org/tasks v2")
    message = str(caught.value)
    assert str(home / "tasks" / "list.txt") in message
    assert "https://example.org/tasks v2" in message
    assert "AGENTRM_DATA" in message
    assert "\n" not in message
