"""Names of files and folders of a run are spelled in one module."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import agentrm_jax
from agentrm_jax.runtime.run_paths import STAGE_FOLDERS, RunPaths

PACKAGE = pathlib.Path(agentrm_jax.__file__).parent
FILES = (
    "trees.jsonl",
    "rollouts.jsonl",
    "episodes.jsonl",
    "scores.json",
    "by_n.json",
    "best_of_k.json",
    "probe.json",
    "metrics.jsonl",
)
FOLDERS = ("sft/model", "reward/explicit", "reward/implicit")
JOINED = {"trees", "states", "samples", "eval", "sft", "reward", "experts", "dataset", "model",
          "results.json", "report.json", "report.html", "checkpoints"}  # fmt: skip


def spelled(tree: ast.Module) -> Iterator[int]:
    """Lines of code, docstrings excepted, that spell a name."""
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found = isinstance(node.right, ast.Constant) and node.right.value in JOINED
        else:
            text = node.value if isinstance(node, ast.Constant) and node not in texts else None
            found = isinstance(text, str) and any(name in text for name in (*FILES, *FOLDERS))
        if found:
            yield node.lineno


def test_no_other_module_spells_them() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "run_paths.py"
        for line in spelled(ast.parse(path.read_text()))
    ]
    assert found == []


def test_a_spelled_name_is_found() -> None:
    code = (
        '"""Of `sft/model`."""\nx = folder / "trees"\ny = f"{run}/sft/model"\nz = folder / name\n'
    )
    assert list(spelled(ast.parse(code))) == [2, 3]


def test_folders_of_earlier_versions_are_found() -> None:
    paths = RunPaths(pathlib.Path("run"))
    assert [str(paths.stage(name)) for name in STAGE_FOLDERS] == [
        "run/experts", "run/sft", "run/trees", "run/states", "run/reward/explicit", "run/samples",
        "run/reward/implicit", "run/calibrate", "run/eval",
    ]  # fmt: skip
    assert str(paths.policy_model) == "run/sft/model"
    assert str(paths.labels) == "run/states/dataset"
    assert str(paths.method("beam").episodes) == "run/eval/beam/episodes.jsonl"
