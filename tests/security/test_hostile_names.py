"""Names of tasks, lists and texts that look like paths, and hostile texts through all stages."""

from __future__ import annotations

import dataclasses
import json
import urllib.parse

import pytest
from hostile_cases import NAMES, harmless

import agentrm_jax as arm
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import admit_text
from agentrm_jax.data.trees import FILE, TreeStore
from agentrm_jax.pipeline.merge_shards import merge_shards
from agentrm_jax.testing import Guess, guess_policy, guess_tasks
from benchmarks import fuzz_texts

WRONG = ("tracebacks", "forged_turns", "invalid_texts", "other_trees", "raw_characters")


def test_tasks_with_hostile_names_stay_in_their_file(tmp_path):
    names = [name for name in NAMES if name and admit_text(name) == name]
    tasks = [
        dataclasses.replace(task, task_id=name, kind=name)
        for task, name in zip(guess_tasks(len(names)), names, strict=True)
    ]
    folder = tmp_path / "run" / "trees"
    with harmless(tmp_path / "run"), arm.EnvPool({"guess": Guess}) as envs:
        trees = arm.explore(guess_policy, envs, tasks, num_iterations=2, store=folder)
    assert len(trees) == len(names) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert list(TreeStore.read(folder)) == names


@pytest.mark.parametrize("name", ["\ud83d", "x" * 2_000_000])
def test_a_name_that_the_store_would_change_is_refused(name):
    [task] = guess_tasks(1)
    with arm.EnvPool({"guess": Guess}) as envs, pytest.raises(UserError, match="valid Unicode"):
        arm.explore(guess_policy, envs, [dataclasses.replace(task, task_id=name)])


@pytest.mark.parametrize(
    "name",
    ["../../other/trees/trees.jsonl", "/{}/other/trees/trees.jsonl", "a/../../x/trees.jsonl"],
)
def test_lists_of_tasks_that_lead_out_of_the_run_are_not_merged(tmp_path, name):
    run, other = tmp_path / "run", tmp_path / "other" / "trees"
    other.mkdir(parents=True)
    (other / FILE).write_text("")
    list_name = urllib.parse.quote(name.format(tmp_path), safe="")
    leases = run / "trees" / ".leases" / list_name
    leases.mkdir(parents=True)
    (run / "config.resolved.yaml").touch()
    (leases / "tasks").write_text(json.dumps(["a"]))
    with harmless(run), pytest.raises(UserError, match="leads out of the run"):
        merge_shards(run)
    assert (other / FILE).read_text() == ""


@pytest.mark.parametrize(
    ("texts", "huge"), [(300, 0.02), pytest.param(10_000, 1e-3, marks=pytest.mark.slow)]
)
def test_hostile_texts_and_texts_of_ten_million_characters(monkeypatch, texts, huge):
    """Through the pool, exploration, the store, resume, import, scoring and the report."""
    if texts < 1000:
        monkeypatch.setattr(fuzz_texts, "TREES", 2)
        search = dataclasses.replace(fuzz_texts.SEARCH, num_iterations=2, expansion_width=3)
        monkeypatch.setattr(fuzz_texts, "SEARCH", search)
    counts = fuzz_texts.fuzz(texts, seed=3, huge=huge)
    assert counts.texts >= texts
    assert counts.huge_texts > 0
    assert {name: getattr(counts, name) for name in WRONG} == dict.fromkeys(WRONG, 0)
