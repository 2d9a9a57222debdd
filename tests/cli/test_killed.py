"""A run that is killed in the middle of every stage ends as one that was left alone."""

from __future__ import annotations

import dataclasses
import pathlib
import signal

import chex
import numpy as np
import pytest
from cli_cases import CONFIG, HERE, agentrm, without_log_probs

from agentrm_jax.data.states import open_labels
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.pipeline.models import load_policy, load_reward
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

MOMENTS = (
    ("agentrm_jax.pipeline.experts:write_trajectories", 1),
    ("agentrm_jax.runtime.metrics:MetricWriter.write", 2),  # sft, behind its first checkpoint
    ("agentrm_jax.pipeline.models:save_model", 1),  # sft, trained but not saved
    ("agentrm_jax.data.trees:TreeStore.append", 9),
    ("agentrm_jax.pipeline.label:write_labels", 1),
    ("agentrm_jax.runtime.metrics:MetricWriter.write", 2),  # train-rm
    ("agentrm_jax.runtime.json_lines:JsonLines.append", 7),  # sample
    ("agentrm_jax.train.implicit:reference_log_probs", 1),
    ("agentrm_jax.runtime.metrics:MetricWriter.write", 1),  # train-implicit
    ("agentrm_jax.runtime.json_lines:JsonLines.append", 5),  # greedy
    ("agentrm_jax.runtime.json_lines:JsonLines.append", 17),  # the samples of best-of-n
    ("agentrm_jax.evaluation.rollout_files:read_json_lines", 3),  # before beam search
    ("agentrm_jax.runtime.json_lines:JsonLines.append", 2),  # in beam search
    ("agentrm_jax.pipeline.report:write_report", 1),
)


@pytest.fixture(scope="module")
def folders(
    finished: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, pathlib.Path]:
    """A run that was left alone, and one that was killed at each of the moments."""
    killed = tmp_path_factory.mktemp("killed")
    arguments = ("run", str(CONFIG), "--output", str(killed))
    for where, call in MOMENTS:
        script = (str(HERE / "kill_at.py"), where, str(call))
        agentrm(*arguments, ends=-signal.SIGKILL, script=script)
    agentrm(*arguments, ends=0)
    return finished, killed


def test_results_are_the_same(folders) -> None:
    rows, comparisons = [], []
    for folder in folders:
        found = read_json(folder / "results.json")
        rows.append([{k: v for k, v in row.items() if k != "wall_seconds"} for row in found])
        comparisons.append(read_json(folder / "report.json")["comparisons"])
    assert rows[0] == rows[1]
    assert comparisons[0] == comparisons[1]
    methods = {row["method"] for row in rows[0]}
    assert {"greedy", "random_of_n", "best_of_n", "oracle_of_n", "beam"} <= methods


def test_trees_and_labels_are_the_same(folders) -> None:
    trees = [TreeStore.read(folder / "trees") for folder in folders]
    assert all(tree.finished for tree in trees[0].values())
    # What a run decoded and a later one reads was computed in another shape: last bits may differ.
    (a, log_probs), (b, others) = (without_log_probs(found) for found in trees)
    assert a == b
    np.testing.assert_allclose(log_probs, others, atol=1e-4)
    labels = [list(open_labels(folder / "states" / "dataset")) for folder in folders]
    for a, b in zip(*labels, strict=True):
        steps = [[dataclasses.replace(s, log_probs=()) for s in tree.steps] for tree in (a, b)]
        assert steps[0] == steps[1]
        assert dataclasses.replace(a, steps=b.steps) == b


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("policy", "sft"), ("policy", "reward/implicit"), ("reward", "reward/explicit")],
)
def test_models_are_the_same_to_the_bit(folders, kind: str, folder: str) -> None:
    load = load_policy if kind == "policy" else load_reward
    mesh = make_mesh(MeshConfig())
    a, b = (load(run / folder / "model", "float32", mesh) for run in folders)
    assert a.config == b.config
    assert a.tokenizer.fingerprint() == b.tokenizer.fingerprint()
    chex.assert_trees_all_equal(a.params, b.params)
