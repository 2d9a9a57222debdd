"""The report of a run, from what its stages left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rich.console import Console

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.evaluation.config import MethodRun, method_runs
from agentrm_jax.evaluation.episodes import Episode, read_episodes
from agentrm_jax.evaluation.report import (
    comparison_sentences,
    console_table,
    environment_table,
    write_report,
)
from agentrm_jax.evaluation.report_rows import BestOfKRow, ProbeRow
from agentrm_jax.evaluation.rows import ByNRow, ReportParts, ScoreRow, read_rows
from agentrm_jax.evaluation.summary import report_parts
from agentrm_jax.evaluation.tree_view import most_telling
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.json_files import read_record
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.run_directory import stages
from agentrm_jax.runtime.stage_files import stage_ended

T = TypeVar("T")

_ORDER = ("greedy", "best_of_n", "beam", "beam_random")
"""The order in which built-in methods are shown; others follow."""


def report(workspace: Workspace) -> None:
    """Writes report.html, report.json and results.json, and prints the tables.

    Raises:
      UserError: Nothing was evaluated, or a file is missing or damaged.
    """
    parts = _write(workspace)
    rows, compared = parts["results"], parts["comparisons"]
    for note in parts.get("notes", []):
        print(note)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(console_table(rows))
    if (by_environment := environment_table(rows)) is not None:
        console.print(by_environment)
    for sentence in comparison_sentences(compared):
        print(sentence)
    print(f"report: {workspace.paths.report_page}")


def _write(workspace: Workspace) -> ReportParts:
    """Writes the files of the report; returns what they show."""
    paths = workspace.paths
    episodes = _episodes(workspace)
    sampled = [run for run in _runs(workspace.config) if run.samples]
    parts = report_parts(
        episodes, _rows(workspace, sampled, "best_of_k", BestOfKRow), _probe(workspace)
    )
    trees = TreeStore.read(paths.trees, finished=stage_ended(paths.trees)).values()
    first = [run for run in sampled if run.sampling_seed == sampled[0].sampling_seed]
    write_report(
        workspace.directory,
        parts,
        stages=list(stages(paths.stages)),
        metrics=read_metrics(paths.metrics),
        scores=_rows(workspace, sampled, "scores", ScoreRow),
        by_n=_rows(workspace, first, "by_n", ByNRow),
        tree=most_telling([tree for tree in trees if tree.iterations]),
    )
    return parts


def _rows(workspace: Workspace, runs: Sequence[MethodRun], name: str, kind: type[T]) -> list[T]:
    """The rows of a file of each run of best-of-n; none of runs without the file."""
    return [
        row
        for run in runs
        if run.family == "best_of_n"
        for row in read_rows(getattr(workspace.paths.method(run.name), name), kind)
    ]


def _probe(workspace: Workspace) -> dict[str, ProbeRow]:
    """Whether last observations give outcomes away; empty if evaluation did not probe it.

    Raises:
      UserError: The file is damaged.
    """
    path = workspace.paths.probe
    if not path.exists():
        return {}
    try:
        return {name: from_json(ProbeRow, row) for name, row in read_record(path).items()}
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore the file") from None


def _episodes(workspace: Workspace) -> list[Episode]:
    """The episodes of all methods that have run; of all that were to run, if evaluation has ended.

    Raises:
      UserError: Nothing was evaluated, or a file is missing, damaged or of another method.
    """
    root = workspace.paths.stage("evaluate")
    ended = stage_ended(root)
    episodes = []
    for run in _runs(workspace.config):
        path = workspace.paths.method(run.name).episodes
        if not path.exists() and not ended:
            continue
        stored = read_episodes(path)
        at_random = run.family == "beam_random"
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


def _runs(config: RunConfig) -> list[MethodRun]:
    """The runs of an evaluation, in the order in which they are shown."""
    runs = method_runs(config.evaluate, config.rewards)
    return sorted(runs, key=lambda r: _ORDER.index(r.family) if r.family in _ORDER else len(_ORDER))
