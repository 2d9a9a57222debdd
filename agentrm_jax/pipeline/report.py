"""The report of a run, from what its stages left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.evaluation.config import MethodRun, method_runs
from agentrm_jax.evaluation.depths import value_by_depth
from agentrm_jax.evaluation.episodes import CONTROLS, Episode, read_episodes
from agentrm_jax.evaluation.report import run_page, write_report
from agentrm_jax.evaluation.report_rows import BestOfKRow, ProbeRow
from agentrm_jax.evaluation.rows import ByNRow, ReportParts, ScoreRow, read_rows
from agentrm_jax.evaluation.summary import report_parts
from agentrm_jax.evaluation.tables import comparison_sentences, console_table, environment_table
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.report_searches import RunRecord, Shown, run_viewer
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.json_files import read_record
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.run_directory import StageRow, stages
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.stage_files import stage_ended

T = TypeVar("T")

_ORDER = ("greedy", "best_of_n", "beam", "beam_random")


def method_rank(family: str) -> int:
    """Returns the place of a method among the rows: built-in ones first, in a fixed order.

    Args:
      family: The name of the method's folder without place of the score and seed.
    """
    return _ORDER.index(family) if family in _ORDER else len(_ORDER)


def report(workspace: Workspace, shown: Shown | None = None) -> None:
    """Writes report.html, report.json and results.json, and prints the tables.

    Args:
      workspace: The run.
      shown: What the viewer of searches shows.

    Raises:
      UserError: Nothing was evaluated, or a file is missing or damaged.
    """
    parts = _write(workspace, shown or Shown())
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


def _write(workspace: Workspace, shown: Shown) -> ReportParts:
    """Writes the files of the report; returns what they show."""
    paths = workspace.paths
    episodes = _episodes(workspace)
    sampled = [run for run in _runs(workspace.config) if run.samples]
    parts = report_parts(
        episodes, _rows(workspace, sampled, "best_of_k", BestOfKRow), read_probe(paths)
    )
    ended = list(stages(paths.stages))
    parts["notes"] = [*parts.get("notes", []), *_not_available(ended)]
    stored = TreeStore.read(paths.trees, finished=stage_ended(paths.trees)).values()
    trees = [tree for tree in stored if tree.iterations]
    first = [run for run in sampled if run.sampling_seed == sampled[0].sampling_seed]
    write_report(
        workspace.directory,
        {
            **parts,
            "stages": ended,
            "by_n": _rows(workspace, first, "by_n", ByNRow),
            "value_by_depth": value_by_depth(trees),
        },
        run_page(
            workspace.directory,
            metrics=read_metrics(paths.metrics),
            scores=_rows(workspace, sampled, "scores", ScoreRow),
            viewer=run_viewer([RunRecord(paths=paths, episodes=episodes, trees=trees)], shown),
        ),
    )
    return parts


def _not_available(ended: Sequence[StageRow]) -> Iterator[str]:
    """Yields a note for each reason why baselines have no rows."""
    reasons: dict[str, list[str]] = {}
    for row in ended:
        found = row["summary"].get("not_available", {}) if row["stage"] == "evaluate" else {}
        for name, reason in found.items():
            reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield printable(f"{' and '.join(names)}: {reason}.")


def _rows(workspace: Workspace, runs: Sequence[MethodRun], name: str, kind: type[T]) -> list[T]:
    """The rows of a file of each run of best-of-n; none of runs without the file."""
    return [
        row
        for run in runs
        if run.family == "best_of_n"
        for row in read_rows(getattr(workspace.paths.method(run.name), name), kind)
    ]


def read_probe(paths: RunPaths) -> dict[str, ProbeRow]:
    """Returns whether last observations give outcomes away; nothing if that was not probed.

    Args:
      paths: The run.

    Raises:
      UserError: The file is damaged.
    """
    path = paths.probe
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
        for episode in stored:
            known = episode.method in run.row_names
            scored_by = episode.reward_model if episode.method == "beam" else None
            if not known or (scored_by if scored_by in CONTROLS else None) != run.control:
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
    return sorted(runs, key=lambda run: method_rank(run.family))
