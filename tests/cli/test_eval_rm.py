"""`agentrm eval-rm` on a finished run: what it prints and writes, and what it refuses."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

from agentrm_jax.cli.main import main
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.pipeline.evaluate_reward_model import read_node_scores
from agentrm_jax.pipeline.reward_model import open_reward_model


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["eval-rm", *map(str, arguments)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("agentrm: error: ")
    return line


def test_accuracy_among_siblings_one_pair_at_a_time(finished, tmp_path, capsys) -> None:
    given = [finished, "--model", finished, "--output", tmp_path / "out", "--seen"]
    assert main(["eval-rm", *map(str, given)]) == 0
    printed = capsys.readouterr().out
    assert "reward model" in printed
    assert str(tmp_path / "out" / "eval_rm.html") in printed
    found = json.loads((tmp_path / "out" / "eval_rm.json").read_text())

    model, right, pairs, states = open_reward_model(finished), 0.0, 0, 0
    trees, stored = TreeStore.read(finished / "trees"), read_node_scores(tmp_path / "out")
    for tree in trees.values():
        visits, sums = tree.backed_up()
        known = [node for node in range(tree.num_nodes) if visits[node]]
        states += len(known)
        every = tree.states()
        scores = dict(zip(known, model.score([[every[n] for n in known]])[0], strict=True))
        assert stored[tree.task.task_id] == pytest.approx(scores)
        for a, b in itertools.combinations([n for n in known if n], 2):
            difference = sums[a] / visits[a] - sums[b] / visits[b]
            if tree.nodes[a].parent != tree.nodes[b].parent or difference == 0:
                continue
            pairs += 1
            gap = (scores[a] - scores[b]) * (1 if difference > 0 else -1)
            right += 0.5 if gap == 0 else gap > 0
    assert (found["trees"], found["states"], found["pairs"]) == (len(trees), states, pairs)
    assert pairs > 5
    assert found["rows"][0]["pairwise_accuracy"]["mean"] == pytest.approx(right / pairs)
    assert found["seen"] == len(trees)
    page = (tmp_path / "out" / "eval_rm.html").read_text()
    assert f"trained on {len(trees)} of these trees" in page
    assert "<svg" in page
    assert page.count("<script") == 1  # its own


def test_scores_before_the_environment_answers(finished, tmp_path, capsys) -> None:
    given = [finished, "--model", finished, "--output", tmp_path / "out", "--seen"]
    assert main(["eval-rm", *map(str, given), "--score-at", "action"]) == 0
    capsys.readouterr()
    model, stored = open_reward_model(finished), read_node_scores(tmp_path / "out")
    for tree in TreeStore.read(finished / "trees").values():
        nodes = list(stored[tree.task.task_id])
        states = [tree.states()[node].without_last_answer() for node in nodes]
        scores = model.score([states])[0]
        assert list(stored[tree.task.task_id].values()) == pytest.approx(scores)
    found = json.loads((tmp_path / "out" / "eval_rm.json").read_text())
    assert found["score_at"] == "action"
    difference, rows = found["rows"][0]["over_likelihood"], {r["name"]: r for r in found["rows"]}
    own, other = (rows[n]["pairwise_accuracy"]["mean"] for n in ("reward model", "likelihood"))
    assert difference["mean"] == pytest.approx(own - other)


def test_trees_of_tasks_that_were_trained_on_are_left_out(finished, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    said = fails(capsys, finished, "--model", finished, "--output", out)
    assert f"{finished}: the model was trained on all of these tasks; give --seen" in said
    assert not out.exists()


@pytest.mark.parametrize("how", ["alone", "exported", "trees emptied"])
def test_what_a_model_was_trained_on_travels_with_it(how, finished, tmp_path, capsys) -> None:
    config = ("--config", finished / "config.resolved.yaml")
    model = tmp_path / "copy" / "reward" / "explicit" / "model"
    if how == "exported":
        model = tmp_path / "exported"
        arguments = ["export", finished, "--what", "reward", "--to", model]
        assert main([str(argument) for argument in arguments]) == 0
    elif how == "alone":
        shutil.copytree(finished / "reward", tmp_path / "copy" / "reward")
    else:
        shutil.copytree(finished, tmp_path / "copy")
        (tmp_path / "copy" / "trees" / "trees.jsonl").write_bytes(b"")
        model = tmp_path / "copy"
    out = tmp_path / "out"
    said = fails(capsys, finished, "--model", model, *config, "--output", out)
    assert "the model was trained on all of these tasks" in said
    given = [finished, "--model", model, *config, "--output", out, "--seen"]
    assert main(["eval-rm", *map(str, given)]) == 0
    assert "not known" not in capsys.readouterr().err
    found = json.loads((out / "eval_rm.json").read_text())
    assert (found["trained_on"], found["seen"]) == ("known", found["trees"])
    assert sorted(p.name for p in out.iterdir()) == [
        "eval_rm.html", "eval_rm.json", "manifest.json", "node_scores.json"]  # fmt: skip


def test_it_is_said_if_nothing_tells_what_a_model_was_trained_on(
    finished, tmp_path, capsys
) -> None:
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(finished / "reward" / "explicit" / "model", model)
    (model / "trained_on.json").unlink()
    given = [finished, "--model", model, "--config", finished / "config.resolved.yaml",
             "--output", out]  # fmt: skip
    assert "trained_on.json: missing, manifest.json lists it" in fails(capsys, *given)
    (model / "manifest.json").unlink()  # a model of an older version has neither
    assert main(["eval-rm", *map(str, given)]) == 0
    assert f"{model}: what this model was trained on is not known" in capsys.readouterr().err
    found = json.loads((out / "eval_rm.json").read_text())
    assert (found["trained_on"], found["seen"]) == ("not known", 0)
    assert (
        "Warning: what this model was trained on is not known" in (out / "eval_rm.html").read_text()
    )


@pytest.mark.parametrize("damage", ["emptied", "halved", "doubled"])
def test_trees_that_are_not_as_exploration_left_them(damage, finished, tmp_path, capsys) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    path = copy / "trees" / "trees.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = {"emptied": [], "halved": lines[: len(lines) // 2], "doubled": lines * 2}
    path.write_bytes(b"".join(damaged[damage]))
    for source in (copy, copy / "trees"):
        said = fails(capsys, source, "--model", finished, "--output", tmp_path / "out", "--seen")
        assert f"{path}: has " in said


def test_mistakes(finished, tmp_path, capsys) -> None:
    model = ("--model", finished, "--output", tmp_path / "out")
    assert f"{tmp_path}: no trees.jsonl here" in fails(capsys, tmp_path, *model)
    (tmp_path / "trees.jsonl").touch()
    assert "trees.jsonl: holds no tree" in fails(capsys, tmp_path, *model)
    given = (finished, *model, "--seen", "--min-visits", 10_000)
    assert f"{finished}: no state was visited 10000 times" in fails(capsys, *given)
    assert "--min-visits: must be at least 1 (got 0)" in fails(
        capsys, finished, *model, "--min-visits", 0
    )
    given = (finished, "--model", tmp_path, "--output", tmp_path / "out", "--seen")
    assert f"{tmp_path}: no reward model here" in fails(capsys, *given)
