"""Files of the user's in the way of a command's output stay as they are."""

from __future__ import annotations

import json
import pathlib

import pytest
from cli_cases import CONFIG

from agentrm_jax.cli.main import main
from agentrm_jax.data.trajectories import open_trajectories

FOLDERS = {
    "import": ("import", "{input}", "--environment", "maze", "--output"),
    "demonstrate": ("demonstrate", "maze", "--n", "2", "--kinds", "generated", "--output"),
    "export": ("export", "{input}", "--what", "policy", "--to"),
    "convert": ("convert", "{input}", "--to"),
    "eval-rm": ("eval-rm", "{input}", "--model", "{input}", "--output"),
}


def command(name: str, source: pathlib.Path, output: object) -> list[str]:
    return [each.format(input=source) for each in FOLDERS[name]] + [str(output)]


def files(folder: pathlib.Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 2
    written = capsys.readouterr().err
    assert written.startswith("agentrm: error: ")
    assert written.count("\n") == 1
    return written


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    path = tmp_path / "source.json"
    turns = [{"from": "human", "value": "a maze"}, {"from": "gpt", "value": "Action: move up"}]
    path.write_text(json.dumps([{"id": "maze_1", "conversations": turns}]))
    return path


@pytest.mark.parametrize("foreign", ["notes.txt", "manifest.json", "examples/1.0.0/notes.txt"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_foreign_file_in_the_output_folder_stays(name, foreign, source, tmp_path, capsys):
    path = tmp_path / "out" / foreign
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "an app"}')
    before = files(tmp_path)
    message = fails(capsys, command(name, source, tmp_path / "out"))
    assert f"{tmp_path / 'out'}: holds files that agentrm did not write" in message
    assert foreign in message
    assert "choose an empty folder" in message
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_outputs_that_are_no_folder_of_their_own(name, source, tmp_path, capsys, monkeypatch):
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    (tmp_path / "link").symlink_to(working)
    before = files(tmp_path)
    for output, reason in (
        (".", "working folder"),
        ("", "working folder"),
        ("..", "working folder"),
        (source, "is a file"),
        (source / "below", "is not a folder"),
        (tmp_path / "link", "is a symbolic link"),
    ):
        assert reason in fails(capsys, command(name, source, output))
    assert files(tmp_path) == before
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", sorted(set(FOLDERS) - {"demonstrate"}))
def test_an_input_in_the_output_folder_stays(name, tmp_path, capsys):
    source = tmp_path / "out" / "source.json"
    source.parent.mkdir()
    source.write_text("[]")
    assert "which is read" in fails(capsys, command(name, source, tmp_path / "out"))
    assert source.read_text() == "[]"


def test_a_data_set_of_ours_is_replaced_and_a_foreign_partial_folder_stays(
    source, tmp_path, capsys
):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / "notes.txt").write_text("mine")
    for name in ("demonstrate", "import", "demonstrate"):
        assert main(command(name, source, out)) == 0
    assert len(open_trajectories(out)) == 2
    assert (partial / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.partial", "source.json"]


@pytest.mark.parametrize("key", ["--n=0", "--n=-5", "--seed=-1", "--workers=-1"])
def test_numbers_of_demonstrate_are_checked_before_any_work(key, tmp_path, capsys):
    least = 1 if key.startswith("--n") else 0
    message = fails(capsys, ["demonstrate", "maze", "--output", str(tmp_path / "out"), key])
    assert f"{key.split('=')[0]}: must be at least {least} (got {key.split('=')[1]})" in message


def test_more_tasks_than_can_be_listed_are_refused(tmp_path, capsys):
    given = ["demonstrate", "maze", "--output", str(tmp_path / "out"), "--n=10000000000"]
    assert "--n: must be at most 1000000 (got 10000000000)" in fails(capsys, given)


@pytest.mark.parametrize("contents", ["mine\n", "[]\n", '{"task_id": 1}\n', "\x00\x01"])
def test_a_file_that_is_no_score_is_not_replaced(contents, source, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    output.write_text(contents)
    arguments = ["score", str(source), "--model", str(tmp_path), "--output", str(output)]
    assert "was not written by `agentrm score`" in fails(capsys, arguments)
    assert output.read_text() == contents


def test_score_writes_neither_over_its_input_nor_into_folders_or_links(source, tmp_path, capsys):
    before = source.read_text()
    (tmp_path / "link").symlink_to(source)
    for output, reason in ((source, "is the file that is read"), (tmp_path, "not a regular file"),
                           (tmp_path / "link", "not a regular file"),
                           ("", "not a regular file"),
                           (source / "x", "is not a folder")):  # fmt: skip
        arguments = ["score", str(source), "--model", str(tmp_path), "--output", str(output)]
        assert reason in fails(capsys, arguments)
    assert source.read_text() == before


def test_a_report_on_no_run_makes_no_folder(tmp_path, capsys):
    message = fails(capsys, ["report", str(CONFIG), "--output", str(tmp_path / "typo")])
    assert f"{tmp_path / 'typo' / 'eval'}: nothing was evaluated yet" in message
    assert list(tmp_path.iterdir()) == []
