"""Files of finished stages that are not as the stage left them: one line with the file."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import pytest
from cli_cases import CONFIG

from agentrm_jax.cli.main import main
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.runtime.stage_files import KEY

EPISODES = "eval/greedy/episodes.jsonl"


@pytest.fixture
def copy(finished, tmp_path) -> pathlib.Path:
    return shutil.copytree(finished, tmp_path / "run")


def error_of(capsys, command: str, folder: pathlib.Path) -> str:
    capsys.readouterr()
    assert main([command, str(CONFIG), "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("agentrm: error: ")
    return said


DAMAGE = {
    "emptied": lambda lines: [],
    "halved": lambda lines: lines[: len(lines) // 2],
    "torn": lambda lines: [*lines[:-1], lines[-1][:-20]],
    "doubled": lambda lines: lines * 2,
    "one line twice": lambda lines: [*lines, lines[0]],
    "swapped": lambda lines: lines[::-1],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "of an earlier version"])
def test_damaged_episodes_are_no_report(copy, capsys, damage, listed):
    if not listed:
        record = json.loads((copy / "eval/stage.json").read_text())
        del record["summary"][KEY], record["sha256"]
        (copy / "eval/stage.json").write_text(json.dumps(record))
    lines = (copy / EPISODES).read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    (copy / EPISODES).write_bytes(b"".join(DAMAGE[damage](lines)))
    if damage == "swapped" and not listed:  # the order of lines decides nothing
        assert main(["report", str(CONFIG), "--output", str(copy)]) == 0
        return
    said = error_of(capsys, "report", copy)
    assert str(copy / EPISODES) in said


def test_a_changed_number_in_the_record_of_a_stage_is_no_report(copy, capsys):
    path = copy / "sft/stage.json"
    record = json.loads(path.read_text())
    record["summary"]["loss"] += 8
    path.write_text(json.dumps(record))
    assert f"{path}: differs from its sha256" in error_of(capsys, "report", copy)
    assert f"{path}: differs from its sha256" in error_of(capsys, "explore", copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [" * 3000, "line 1: nested more than 20 levels deep"),
        (b"a: [1", "line 1: not YAML"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"[]", "line 1: expected keys and values"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [" % (i, i) + b",".join([b"*%c" % (i - 1)] * 10) + b"]\n"
            for i in range(98, 106)
        ), "more than 10,000 keys and values"),
    ],
    ids=["deep", "torn", "no text", "a list", "aliases"],
)  # fmt: skip
def test_a_damaged_configuration_of_a_run_is_no_report(copy, capsys, content, message):
    path = copy / "config.resolved.yaml"
    path.write_bytes(content)
    said = error_of(capsys, "report", copy)
    assert str(path) in said
    assert message in said


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "of an earlier version"])
def test_episodes_of_another_method_are_no_report(copy, capsys, listed):
    if not listed:
        record = json.loads((copy / "eval/stage.json").read_text())
        del record["summary"][KEY], record["sha256"]
        (copy / "eval/stage.json").write_text(json.dumps(record))
    for name in ("episodes.jsonl", "results.json"):
        shutil.copy(copy / "eval/beam" / name, copy / "eval/greedy" / name)
    assert f"{copy}/eval/greedy/" in error_of(capsys, "report", copy)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("report", "eval/beam/episodes.jsonl"),
        ("report", "eval/best_of_n/scores.json"),
        ("report", "trees/trees.jsonl"),
        ("label", "trees/trees.jsonl"),
        ("train-implicit", "samples/rollouts.jsonl"),
        ("run", "trees/trees.jsonl"),
    ],
)
def test_a_torn_file_of_a_finished_stage_is_damage(copy, capsys, command, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-30])
    stage = {"label": "states", "train-implicit": "reward/implicit"}.get(command)
    if stage:
        shutil.rmtree(copy / stage)
    assert str(path) in error_of(capsys, command, copy)


def test_trees_that_all_failed_say_why_there_is_no_label(copy, capsys):
    trees = TreeStore.read(copy / "trees").values()
    shutil.rmtree(copy / "states")
    (copy / "trees/trees.jsonl").unlink()
    record = json.loads((copy / "trees/stage.json").read_text())
    del record["summary"][KEY], record["sha256"]
    (copy / "trees/stage.json").write_text(json.dumps(record))
    store = TreeStore(copy / "trees")
    for number, tree in enumerate(trees):
        store.begin(tree.task, tree.first_observation)
        store.finish(tree.task.task_id, error=f"environment 'maze': broken {number}")
    store.close()
    said = error_of(capsys, "label", copy)
    count = len(trees)
    assert f"{count} of {count} trees failed, the first with: environment 'maze': broken" in said


def test_results_count_replies_without_an_action_and_failures(finished):
    rows = json.loads((finished / "results.json").read_text())
    counted = {row["method"]: row["replies_without_action"] for row in rows if row["task"] == "all"}
    assert set(counted) >= {"greedy", "best_of_n", "beam"}
    assert all(row["failed_candidates"] == 0 for row in rows)
    episodes = (finished / EPISODES).read_text().splitlines()
    own = [json.loads(line)["record"]["replies_without_action"] for line in episodes]
    [row] = [r for r in rows if r["method"] == "greedy" and (r["task"], r["split"]) == ("all",) * 2]
    assert row["replies_without_action"] == sum(own)
    summary = json.loads((finished / "trees/stage.json").read_text())["summary"]
    assert (summary["failed_candidates"], summary["failed_trees"]) == (0, 0)
    assert summary["replies_without_action"] >= 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "versions.json", "eval/stage.json"])
def test_a_pipe_in_place_of_a_file_is_refused(copy, capsys, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert f"{copy / name}: not a regular file" in error_of(capsys, "report", copy)
