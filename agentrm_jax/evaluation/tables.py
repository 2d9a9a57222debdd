"""Tables of the results, for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from agentrm_jax.core.text import printable
from agentrm_jax.evaluation.episodes import Variant, row_variant
from agentrm_jax.evaluation.results import SPLITS, level
from agentrm_jax.evaluation.rows import Comparison, ResultRow, ScoreQuality, ScoreRow
from agentrm_jax.evaluation.statistics import pairwise_accuracy, pearson, spearman

if TYPE_CHECKING:
    from rich.table import Table

UNDECIDED = "not distinguishable from"
_MOST_SENTENCES = 12


class MethodEntry(TypedDict):
    """A method in the table of results.

    Attributes:
      label: Its name, for example `best-of-5, explicit`.
      run: The name of its run, if several runs are compared; else empty.
      score_at: The place at which the reward model scored; None without a reward model.
      baseline: Whether it has no trained reward model.
      oracle: Whether it chooses by the returns themselves.
      macro: Mean of the environments' means, or of the kinds' if there is one environment; None if
        there are neither.
      gap_closed: Part of the oracle gap that it reaches; None without one.
      gap_closed_ci95: Low and high end of its 95% interval; None without one.
      cost: The row over all tasks.
      cells: The row of each split, None if the method has no task of it.
    """

    label: str
    run: str
    score_at: str | None
    baseline: bool
    oracle: bool
    macro: float | None
    gap_closed: float | None
    gap_closed_ci95: list[float] | None
    cost: ResultRow
    cells: list[ResultRow | None]


class PartTable(TypedDict):
    """Mean scores by method and environment, or by method and kind.

    Attributes:
      of: `environment` or `kind`.
      names: The rows of the table, with whether nothing of each was trained on.
      gaps: The oracle gap by name.
      scores: For each label the results by name.
    """

    of: str
    names: dict[str, bool]
    gaps: dict[str, float]
    scores: dict[str, dict[str, ResultRow]]


class GapCell(TypedDict):
    """The oracle gap on some tasks: mean return of the best of n minus that of a random one."""

    gap: float
    ci95: list[float] | None


class GapEntry(TypedDict):
    """The first line of the table of results.

    Attributes:
      run: The name of the run, if several runs are compared; else empty.
      n: Trajectories that are chosen from.
      cells: The gap of each split, None without tasks.
    """

    run: str
    n: int
    cells: list[GapCell | None]


def method_table(rows: Sequence[ResultRow]) -> list[MethodEntry]:
    """Returns the methods: those with a reward model, then baselines, the oracle last."""
    methods: dict[tuple[str, Variant], dict[tuple[str, str], ResultRow]] = {}
    for row in rows:
        own = methods.setdefault((_run(row), row_variant(row)), {})
        own[row["task"], row["split"]] = row
    entries: list[MethodEntry] = []
    for (run, variant), own in methods.items():
        means: dict[str, list[float]] = {"environment": [], "kind": [], "all": []}
        for row in own.values():
            if level(row) == "kind" or row["split"] == "all":
                means[level(row)].append(row["score_mean"])
        several = means["environment"] if len(means["environment"]) > 1 else means["kind"]
        cost = own["all", "all"]
        entries.append(
            {
                "label": variant.label,
                "run": run,
                "score_at": score_place(cost),
                "baseline": variant.is_baseline,
                "oracle": variant.method == "oracle_of_n",
                "macro": float(np.mean(several)) if several else None,
                "gap_closed": cost.get("gap_closed"),
                "gap_closed_ci95": cost.get("gap_closed_ci95"),
                "cost": cost,
                "cells": [own.get(("all", split)) for split in SPLITS],
            }
        )
    return sorted(entries, key=lambda entry: (entry["baseline"], entry["oracle"]))


def score_place(row: ResultRow) -> str | None:
    """Returns the place at which a reward model scored, None for a row without one."""
    return str(row.get("score_at", "observation")) if row["reward_model"] else None


def gap_table(rows: Sequence[ResultRow], gaps: Sequence[Mapping[str, Any]]) -> list[GapEntry]:
    """Returns the oracle gap of each run.

    Args:
      rows: See `results.result_rows`.
      gaps: The stored gaps of a report, with intervals; reports of early versions have none, and
        the gap is then the difference of two rows.
    """
    found: dict[tuple[str, int], dict[str, GapCell]] = {}
    for gap in gaps:
        if gap["task"] == "all":
            cells = found.setdefault((_run(gap), gap["n"]), {})
            cells[gap["split"]] = {"gap": gap["gap"], "ci95": gap.get("ci95")}
    if not gaps:
        for (task, run, n, split), gap in _row_gaps(rows).items():
            if task == "all":
                found.setdefault((run, n), {})[split] = {"gap": gap, "ci95": None}
    return [
        {"run": run, "n": n, "cells": [cells.get(split) for split in SPLITS]}
        for (run, n), cells in found.items()
    ]


def _row_gaps(rows: Sequence[ResultRow]) -> dict[tuple[str, str, int, str], float]:
    """The oracle gap by (task, run, n, split), as the difference of the rows' means."""
    means: dict[str, dict[tuple[str, str, int, str], float]] = {
        "oracle_of_n": {},
        "random_of_n": {},
    }
    for row in rows:
        if row["method"] in means:
            key = (row["task"], _run(row), row["n"], row["split"])
            means[row["method"]][key] = row["score_mean"]
    oracle, random = means["oracle_of_n"], means["random_of_n"]
    return {key: oracle[key] - random[key] for key in oracle if key in random}


def part_table(rows: Sequence[ResultRow], of: str) -> PartTable:
    """Returns mean scores by method, in the order of `method_table`, and by environment or kind.

    Args:
      rows: See `results.result_rows`.
      of: `environment` or `kind`.
    """
    scores: dict[str, dict[str, ResultRow]] = {
        _labelled(entry["label"], entry["run"]): {} for entry in method_table(rows)
    }
    names: dict[str, bool] = {}
    for row in rows:
        if level(row) == of:
            names[row["task"]] = names.get(row["task"], True) and row["split"] != "held_in"
            if of == "kind" or row["split"] == "all":
                label = _labelled(row_variant(row).label, _run(row))
                scores[label][row["task"]] = row
    gaps: dict[str, float] = {}
    for (task, _, _, _), gap in _row_gaps([row for row in rows if level(row) == of]).items():
        gaps.setdefault(task, gap)
    return {"of": of, "names": names, "gaps": gaps, "scores": scores}


def _run(row: Mapping[str, Any]) -> str:
    """The name of the run of a row; empty unless several runs are compared."""
    return row.get("run", "")


def _labelled(label: str, run: str) -> str:
    return f"{run}: {label}" if run else label


class HeatMap(TypedDict):
    """A matrix of values as a table.

    Attributes:
      columns: Names of the columns.
      rows: By row and column the value, its interval, and its `share` in [0, 1] of the range of all
        values.
    """

    columns: list[str]
    rows: dict[str, dict[str, dict[str, Any]]]


def heat_map(cells: Sequence[Mapping[str, Any]]) -> HeatMap:
    """Returns the cells of a matrix by row and column.

    Args:
      cells: `row`, `column`, `value` and, if known, `ci95` of each.
    """
    values = [cell["value"] for cell in cells]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        share = (cell["value"] - low) / (high - low) if high > low else 0.5
        rows.setdefault(cell["row"], {})[cell["column"]] = {**cell, "share": share}
    return {"columns": list(dict.fromkeys(cell["column"] for cell in cells)), "rows": rows}


def console_table(rows: Sequence[ResultRow]) -> Table:
    """Returns the results as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Mean score ± half of the 95% interval", title_justify="left")
    entries = method_table(rows)
    texts = {
        title: (lambda entry, key=key: entry[key] or "-")
        for title, key in (("run", "run"), ("score at", "score_at"))
        if any(entry["run"] if key == "run" else entry["cost"].get(key) for entry in entries)
    }
    table.add_column("method")
    for title in texts:
        table.add_column(title)
    for split in SPLITS:
        table.add_column(split.replace("_", " "), justify="right")
    table.add_column("macro", justify="right")
    has_gap = any(entry["gap_closed"] is not None for entry in entries)
    if has_gap:
        table.add_column("gap\nclosed", justify="right")
    table.add_column("policy\ntokens/task", justify="right")
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
            *(Text(printable(text(entry))) for text in texts.values()),
            *cells,
            "-" if entry["macro"] is None else f"{entry['macro']:.3f}",
            *([_percent(entry["gap_closed"], entry["gap_closed_ci95"])] if has_gap else ()),
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
    shown = [
        _labelled(entry["label"], entry["run"])
        for entry in method_table(rows)
        if not entry["baseline"] or entry["label"] == "greedy"
    ]
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


def _percent(share: float | None, ci95: Sequence[float] | None) -> str:
    if share is None:
        return "-"
    ends = f" [{100 * ci95[0]:.0f}, {100 * ci95[1]:.0f}]" if ci95 else ""
    return f"{100 * share:.0f}%{ends}"


def _score(row: ResultRow) -> str:
    low, high = row["score_ci95"]
    return f"{row['score_mean']:.3f} ± {(high - low) / 2:.3f}"


def comparison_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns the comparisons over all tasks as sentences: of many those that show a difference."""
    overall = [c for c in comparisons if c["split"] == "all"]
    if len(overall) <= _MOST_SENTENCES:
        return list(map(_sentence, overall))
    decided = [c for c in overall if _verdict(c) != UNDECIDED]
    rest = len(overall) - len(decided)
    return [*map(_sentence, decided), f"{rest} other comparisons over all tasks show no difference"]


def _sentence(c: Comparison) -> str:
    low, high = c["ci95"]
    corrected = f", p {c['p_holm']:.3f} by Holm's rule" if "p_holm" in c else ""
    return (
        f"{printable(c['a_label'])} is {_verdict(c)} {printable(c['b_label'])}: "
        f"{c['difference']:+.3f} [{low:+.3f}, {high:+.3f}] over {c['n_tasks']} tasks{corrected}"
    )


def _verdict(c: Comparison) -> str:
    """The interval decides, and of more than five comparisons Holm's rule has to agree."""
    low, high = c["ci95"]
    if c.get("p_holm", 0.0) >= 0.05 or low <= 0 <= high:
        return UNDECIDED
    return "better than" if low > 0 else "worse than"


def scored_by(row: Mapping[str, Any]) -> str:
    """Returns the reward model of a row, with the place of its scores unless it is the default."""
    place = row.get("score_at", "observation")
    return row["reward_model"] if place == "observation" else f"{row['reward_model']}, at {place}"


def score_quality(scores: Sequence[ScoreRow]) -> dict[str, ScoreQuality]:
    """Returns, for each reward model, how well its scores agree with returns."""
    found: dict[str, ScoreQuality] = {}
    for name in dict.fromkeys(map(scored_by, scores)):
        own = [row for row in scores if scored_by(row) == name]
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
