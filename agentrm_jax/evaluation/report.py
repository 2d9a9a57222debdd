"""The report of a run: results.json, report.json and one self-contained report.html."""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
from markupsafe import Markup

from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.core.yaml_nodes import read_yaml
from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.evaluation.episodes import Variant, row_variant
from agentrm_jax.evaluation.page import page
from agentrm_jax.evaluation.results import SPLITS, level
from agentrm_jax.evaluation.rows import (
    ByNRow,
    Comparison,
    Report,
    ReportParts,
    ResultRow,
    ScoreQuality,
    ScoreRow,
)
from agentrm_jax.evaluation.statistics import pairwise_accuracy, pearson, spearman
from agentrm_jax.evaluation.tree_view import branches
from agentrm_jax.runtime.json_files import read_record, write_json_atomic, write_text_atomic
from agentrm_jax.runtime.run_directory import RESOLVED, StageRow, flat
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.stage_files import KEY

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
T = TypeVar("T", bound=Mapping[str, Any])


def write_report(
    run_directory: pathlib.Path,
    parts: ReportParts,
    *,
    stages: Sequence[StageRow] = (),
    metrics: Sequence[Row] = (),
    scores: Sequence[ScoreRow] = (),
    by_n: Sequence[ByNRow] = (),
    tree: TreeRecord | None = None,
) -> pathlib.Path:
    """Writes results.json, report.json and report.html.

    Args:
      run_directory: The run's folder; its config.resolved.yaml and versions.json are shown if it
        has them.
      parts: See `summary.report_parts`; `results` and `comparisons` are enough.
      stages: The finished stages, in order.
      metrics: Rows of metrics.jsonl: `stage`, `update`, `loss`, ...
      scores: The scored test trajectories.
      by_n: See `harness.scores_by_n`.
      tree: The search tree to show.

    Returns:
      The path of report.html.
    """
    explored = [stage["summary"] for stage in stages if stage["stage"] == "explore"]
    report: Report = {
        **parts,
        "stages": list(stages),
        "trees": next(iter(explored), {}),
        "reward_models": score_quality(scores),
        "by_n": list(by_n),
    }
    paths = RunPaths(run_directory)
    write_json_atomic(paths.results, parts["results"])
    write_json_atomic(paths.report, report)
    page = render(
        title=run_directory.resolve().name,
        report=report,
        config=_config(run_directory),
        versions=_versions(run_directory),
        metrics=metrics,
        scores=scores,
        tree=tree,
    )
    write_text_atomic(paths.report_page, page)
    return paths.report_page


def render(
    *,
    title: str,
    report: Report,
    config: Row,
    versions: Row,
    metrics: Sequence[Row],
    scores: Sequence[ScoreRow],
    tree: TreeRecord | None,
) -> str:
    """Returns the HTML of the report."""
    table = method_table(report["results"])
    return page(
        "report.html",
        title=title,
        report=report,
        table=table,
        parts=[part_table(report["results"], of) for of in ("environment", "kind")],
        sentences=comparison_sentences(report["comparisons"]),
        plots=_plots(report, metrics, scores),
        stages=_stage_table(report["stages"]),
        config=_settings(config),
        versions=_settings(versions),
        tree=tree,
        root=None if tree is None else branches(tree),
    )


def _plots(
    report: Report, metrics: Sequence[Row], scores: Sequence[ScoreRow]
) -> dict[str, list[Markup]]:
    # matplotlib is slow to import, and only this needs it.
    from agentrm_jax.evaluation import plots

    found: dict[str, list[Markup]] = {
        "forest": [], "budget": [], "by_n": [], "curves": [], "scores": [],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts
        if report["comparisons"]:
            found["forest"].append(Markup(plots.forest(_shown(report["comparisons"]))))
        if report["results"]:
            found["budget"].append(Markup(plots.score_against_budget(_shown(report["results"]))))
        if any(row["n"] > 1 for row in report["by_n"]):
            found["by_n"].append(Markup(plots.score_by_n(_shown(report["by_n"]))))
        if any("loss" in row for row in metrics):
            found["curves"].append(Markup(plots.learning_curves(_shown(metrics))))
        shown = _shown(scores)
        for name in dict.fromkeys(row["reward_model"] for row in shown):
            found["scores"].append(Markup(plots.score_against_outcome(shown, name)))
    return found


def _shown(rows: Sequence[T]) -> list[T]:
    """Rows whose texts can be drawn: valid, without control characters."""
    shown: list[Any] = [
        {
            key: printable(admit_text(value, 1000)) if isinstance(value, str) else value
            for key, value in row.items()
        }
        for row in rows
    ]
    return shown


class MethodEntry(TypedDict):
    """A method in the table of results.

    Attributes:
      label: Its name, for example `best-of-5, explicit`.
      baseline: Whether it has no trained reward model.
      oracle: Whether it chooses by the returns themselves.
      macro: Mean of the environments' means, or of the kinds' if there is one environment; None if
        there are neither.
      cost: The row over all tasks.
      cells: The row of each split, None if the method has no task of it.
    """

    label: str
    baseline: bool
    oracle: bool
    macro: float | None
    cost: ResultRow
    cells: list[ResultRow | None]


class PartTable(TypedDict):
    """Mean scores by method and environment, or by method and kind.

    Attributes:
      of: `environment` or `kind`.
      names: The columns, with whether nothing of each was trained on.
      scores: For each label the rows by column.
    """

    of: str
    names: dict[str, bool]
    scores: dict[str, dict[str, ResultRow]]


def method_table(rows: Sequence[ResultRow]) -> list[MethodEntry]:
    """Returns the methods: those with a reward model, then baselines, the oracle last."""
    methods: dict[Variant, dict[tuple[str, str], ResultRow]] = {}
    for row in rows:
        methods.setdefault(row_variant(row), {})[row["task"], row["split"]] = row
    entries: list[MethodEntry] = []
    for variant, own in methods.items():
        means: dict[str, list[float]] = {"environment": [], "kind": [], "all": []}
        for row in own.values():
            if level(row) == "kind" or row["split"] == "all":
                means[level(row)].append(row["score_mean"])
        several = means["environment"] if len(means["environment"]) > 1 else means["kind"]
        entries.append(
            {
                "label": variant.label,
                "baseline": variant.is_baseline,
                "oracle": variant.method == "oracle_of_n",
                "macro": float(np.mean(several)) if several else None,
                "cost": own["all", "all"],
                "cells": [own.get(("all", split)) for split in SPLITS],
            }
        )
    return sorted(entries, key=lambda entry: (entry["baseline"], entry["oracle"]))


def part_table(rows: Sequence[ResultRow], of: str) -> PartTable:
    """Returns mean scores by method, in the order of `method_table`, and by environment or kind.

    Args:
      rows: See `results.result_rows`.
      of: `environment` or `kind`.
    """
    scores: dict[str, dict[str, ResultRow]] = {entry["label"]: {} for entry in method_table(rows)}
    names: dict[str, bool] = {}
    for row in rows:
        if level(row) == of:
            names[row["task"]] = names.get(row["task"], True) and row["split"] != "held_in"
            if of == "kind" or row["split"] == "all":
                scores[row_variant(row).label][row["task"]] = row
    return {"of": of, "names": names, "scores": scores}


def console_table(rows: Sequence[ResultRow]) -> Table:
    """Returns the results as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Mean score ± half of the 95% interval", title_justify="left")
    table.add_column("method")
    for split in SPLITS:
        table.add_column(split.replace("_", " "), justify="right")
    table.add_column("macro", justify="right")
    table.add_column("policy tokens/task", justify="right")
    entries = method_table(rows)
    counts = {
        title: key
        for title, key in (("errors", "errors"), ("no action", "replies_without_action"))
        if any(entry["cost"].get(key) for entry in entries)
    }
    for title in counts:
        table.add_column(title, justify="right")
    for i, entry in enumerate(entries):
        cells = [
            Text("-") if cell is None else Text(f"{_score(cell)}  n={cell['n_tasks']}")
            for cell in entry["cells"]
        ]
        mark = " (upper bound)" if entry["oracle"] else " (baseline)" if entry["baseline"] else ""
        cost = entry["cost"]
        last_of_block = i + 1 < len(entries) and entry["baseline"] != entries[i + 1]["baseline"]
        table.add_row(
            Text(printable(entry["label"]) + mark),
            *cells,
            "-" if entry["macro"] is None else f"{entry['macro']:.3f}",
            f"{cost['policy_tokens'] / cost['n_tasks']:,.0f}",
            *(f"{cost.get(key, 0):,}" for key in counts.values()),
            style="dim" if entry["baseline"] else "bold",
            end_section=last_of_block,
        )
    return table


def environment_table(rows: Sequence[ResultRow]) -> Table | None:
    """Returns the results by environment, of the methods with a reward model and of greedy.

    None if there is one environment.
    """
    from rich.table import Table
    from rich.text import Text

    part = part_table(rows, "environment")
    if len(part["names"]) < 2:
        return None
    shown = [e["label"] for e in method_table(rows) if not e["baseline"] or e["label"] == "greedy"]
    table = Table(title="By environment", title_justify="left")
    table.add_column("environment")
    for label in shown:
        table.add_column(Text(printable(label)), justify="right")
    for name, held_out in part["names"].items():
        cells = [part["scores"][label].get(name) for label in shown]
        table.add_row(
            Text(printable(name) + (" (held out)" if held_out else "")),
            *("-" if cell is None else _score(cell) for cell in cells),
        )
    return table


def _score(row: ResultRow) -> str:
    low, high = row["score_ci95"]
    return f"{row['score_mean']:.3f} ± {(high - low) / 2:.3f}"


def comparison_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns the comparisons over all tasks as sentences."""
    sentences = []
    for c in comparisons:
        if c["split"] != "all":
            continue
        low, high = c["ci95"]
        verdict = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
        sentences.append(
            f"{printable(c['a_label'])} is {verdict} {printable(c['b_label'])}: "
            f"{c['difference']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] over {c['n_tasks']} tasks"
        )
    return sentences


def score_quality(scores: Sequence[ScoreRow]) -> dict[str, ScoreQuality]:
    """Returns, for each reward model, how well its scores agree with returns."""
    found: dict[str, ScoreQuality] = {}
    for name in dict.fromkeys(row["reward_model"] for row in scores):
        own = [row for row in scores if row["reward_model"] == name]
        groups: dict[str, tuple[list[float], list[float]]] = {}
        for row in own:
            group = groups.setdefault(row["task_id"], ([], []))
            group[0].append(row["score"])
            group[1].append(row["outcome"])
        x, y = [row["score"] for row in own], [row["outcome"] for row in own]
        found[name] = {
            "n": len(own),
            "pairwise_accuracy": _finite(pairwise_accuracy(list(groups.values()))),
            "pearson": _finite(pearson(x, y)),
            "spearman": _finite(spearman(x, y)),
        }
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stage_table(stages: Sequence[StageRow]) -> list[dict[str, Any]]:
    longest = max((stage["seconds"] for stage in stages), default=0.0) or 1.0
    return [
        {
            "stage": stage["stage"],
            "seconds": stage["seconds"],
            "share": 100 * stage["seconds"] / longest,
            "summary": _settings({k: v for k, v in stage["summary"].items() if k != KEY}),
        }
        for stage in stages
    ]


def _config(run_directory: pathlib.Path) -> Row:
    path = run_directory / RESOLVED
    return read_yaml(path).plain if path.exists() else {}


def _versions(run_directory: pathlib.Path) -> Row:
    path = run_directory / "versions.json"
    return read_record(path) if path.exists() else {}


def _settings(value: Row) -> list[tuple[str, Any]]:
    """Keys and values for a table."""
    return [
        (key, ", ".join(map(str, found)) if isinstance(found, list) else found)
        for key, found in flat(dict(value)).items()
    ]
