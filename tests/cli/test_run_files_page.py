"""The page of a run's files names every file of a run, and every field of its records."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import sys
import types
from typing import TypedDict

import pytest

from agentrm_jax.data.states import open_labels
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.data.trees import IterationRecord
from agentrm_jax.pipeline.stages import STAGES
from agentrm_jax.runtime.run_paths import STAGE_FOLDERS, MethodPaths, RunPaths

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> types.ModuleType:
    """The script that writes the page; it imports its neighbour."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        path = ROOT / ".ci" / "run_files.py"
        spec = importlib.util.spec_from_file_location("run_files", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["run_files"] = module  # its dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / ".ci"))
    return module


def test_every_file_of_a_run_is_on_the_page(page, finished) -> None:
    names = [path.relative_to(finished).as_posix() for path in finished.rglob("*")]
    files = [name for name in names if (finished / name).is_file()]
    assert [name for name in files if page.file_of(name) is None] == []
    assert len(files) > 50


def test_every_field_of_a_run_is_on_the_page(page, finished) -> None:
    checked = set()
    for path in finished.rglob("*"):
        file = page.file_of(path.relative_to(finished).as_posix()) if path.is_file() else None
        if file is None or file.form == "other":
            continue
        for value in page.items(file, path):
            page.check(file, value)
            checked.add(file.path)
    assert {"metrics.jsonl", "report.json", "trees/trees.jsonl", "STAGE/stage.json"} < checked
    assert len(checked) > 15
    paths = RunPaths(finished)
    assert len(open_labels(paths.labels))
    assert len(open_trajectories(paths.experts))


def test_every_path_that_the_package_names_is_on_the_page(page) -> None:
    run = pathlib.Path("run")
    paths = [
        getattr(owner(run), name)
        for owner in (RunPaths, MethodPaths)
        for name, value in vars(owner).items()
        if isinstance(value, property) and name != "stages"
    ]
    names = {path.relative_to(run).as_posix() for path in paths if isinstance(path, pathlib.Path)}
    named = {name if "/" in name or name in _OF_A_RUN else f"eval/beam/{name}" for name in names}
    files = [name for name in named if name.endswith((".json", ".jsonl", ".html", ".yaml"))]
    assert len(files) > 12
    assert [name for name in files if page.file_of(name) is None] == []
    stages = {spec.name for spec in STAGES}
    assert stages == set(page.SUMMARIES) == set(STAGE_FOLDERS)


_OF_A_RUN = ("config.resolved.yaml", "versions.json", "metrics.jsonl", "results.json",
             "report.json", "report.html", "servers.json", "reward_scales.json")  # fmt: skip


def test_the_page_is_made_from_the_package(page) -> None:
    assert page.PAGE.read_text() == page.page()


def test_examples_have_the_fields_of_their_tables(page) -> None:
    text = page.PAGE.read_text()
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    examples = [json.loads(block) for block in blocks]
    stored = json.loads(page.EXAMPLES.read_text())
    assert len(examples) > 15
    assert all(any(each in found for found in stored.values()) for each in examples)
    for path, values in stored.items():
        [file] = [file for file in page.FILES if file.path == path]
        known = {"kind"} if IterationRecord in file.kinds else set()
        known |= {name for kind in file.kinds for name in page.fields(kind)}
        assert all(set(value) <= known for value in values), path


def test_what_is_not_on_the_page_is_found(page) -> None:
    assert page.file_of("eval/beam/unknown.json") is None
    assert page.file_of("sft/model/other.json") is None
    file = page.file_of("eval/beam/scores.json")
    row = {"reward_model": "explicit", "task_id": "a", "score": 0.5, "outcome": 1.0}
    page.check(file, row)
    with pytest.raises(ValueError, match="new: unknown key"):
        page.check(file, {**row, "new": 1})
    with pytest.raises(ValueError, match="score: must be a number"):
        page.check(file, {**row, "score": "high"})
    with pytest.raises(ValueError, match="Attributes lacks secret"):
        page.descriptions(Undescribed)


class Undescribed(TypedDict):
    """A record with a field that its docstring lacks."""

    secret: int
