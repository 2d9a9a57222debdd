"""The summary of the stage `explore`, and what it says of trees that failed."""

from __future__ import annotations

from agentrm_jax.data.trees import TreeStore
from agentrm_jax.pipeline.explore import _tree_summary
from agentrm_jax.testing import guess_tasks


def test_failed_trees_are_counted_and_the_first_reason_is_printed(tmp_path, capsys):
    whole, *broken = guess_tasks(3)
    store = TreeStore(tmp_path)
    for task in (whole, *broken):
        store.begin(task, "Guess.")
    store.finish(whole.task_id, None)
    for number, task in enumerate(broken):
        store.finish(task.task_id, f"environment 'guess': reason {number}\nand more")
    store.close()
    summary = _tree_summary(tmp_path)
    assert (summary["trees"], summary["failed_trees"]) == (3, 2)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("agentrm: warning: 2 of 3 trees failed, the first with: environment")
    assert "reason 0" in line


def test_nothing_is_printed_if_no_tree_failed(tmp_path, capsys):
    [task] = guess_tasks(1)
    store = TreeStore(tmp_path)
    store.begin(task, "Guess.")
    store.finish(task.task_id, None)
    store.close()
    assert _tree_summary(tmp_path)["failed_trees"] == 0
    assert capsys.readouterr().err == ""
