"""The report of a run, from what its stages left."""

from __future__ import annotations

from rich.console import Console

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.config import EvaluateConfig, MethodRun, method_runs
from agentrm_jax.evaluation.report import (
    comparison_sentences,
    console_table,
    environment_table,
    write_report,
)
from agentrm_jax.evaluation.results import (
    Episode,
    comparisons,
    read_episodes,
    result_rows,
)
from agentrm_jax.evaluation.rows import ByNRow, Comparison, ResultRow, ScoreRow, read_rows
from agentrm_jax.evaluation.tree_view import most_telling
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.run_directory import stages
from agentrm_jax.runtime.stage_files import stage_ended

_ORDER = ("greedy", "best_of_n", "beam", "beam_random")
"""The order in which built-in methods are shown; others follow."""


def report(workspace: Workspace) -> None:
    """Writes report.html, report.json and results.json, and prints the tables.

    Raises:
      UserError: Nothing was evaluated, or a file is missing or damaged.
    """
    rows, compared = _write(workspace)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(console_table(rows))
    if (by_environment := environment_table(rows)) is not None:
        console.print(by_environment)
    for sentence in comparison_sentences(compared):
        print(sentence)
    print(f"report: {workspace.paths.report_page}")


def _write(workspace: Workspace) -> tuple[list[ResultRow], list[Comparison]]:
    """Writes the files of the report; returns the result rows and the comparisons."""
    paths = workspace.paths
    episodes = _episodes(workspace)
    rows, compared = result_rows(episodes), comparisons(episodes)
    best_of_n = paths.method("best_of_n")
    trees = TreeStore.read(paths.trees, finished=stage_ended(paths.trees)).values()
    write_report(
        workspace.directory,
        rows,
        compared,
        stages=list(stages(paths.stages)),
        metrics=read_metrics(paths.metrics),
        scores=read_rows(best_of_n.scores, ScoreRow),
        by_n=read_rows(best_of_n.by_n, ByNRow),
        tree=most_telling([tree for tree in trees if tree.iterations]),
    )
    return rows, compared


def _episodes(workspace: Workspace) -> list[Episode]:
    """The episodes of all methods that have run; of all that were to run, if evaluation has ended.

    Raises:
      UserError: Nothing was evaluated, or a file is missing, damaged or of another method.
    """
    root = workspace.paths.stage("evaluate")
    ended = stage_ended(root)
    episodes = []
    for run in _runs(workspace.config.evaluate, workspace.config.rewards):
        path = workspace.paths.method(run.name).episodes
        if not path.exists() and not ended:
            continue
        stored = read_episodes(path)
        at_random = run.name == "beam_random"
        for episode in stored:
            known = episode.method in run.row_names
            if not known or (episode.reward_model == "random") != at_random:
                raise UserError(
                    f"{path}: holds episodes of {printable(episode.variant.label)}; restore the "
                    f"file, or delete {root} to evaluate again"
                )
        episodes += stored
    if not episodes:
        raise UserError(f"{root}: nothing was evaluated yet; `agentrm evaluate` does it")
    return episodes


def _runs(config: EvaluateConfig, rewards: tuple[str, ...]) -> list[MethodRun]:
    """The runs of an evaluation, in the order in which they are shown."""
    runs = method_runs(config, rewards)
    return sorted(runs, key=lambda r: _ORDER.index(r.name) if r.name in _ORDER else len(_ORDER))
