"""The report of a run: results.json, report.json and one self-contained report.html."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.core.yaml_nodes import read_yaml
from agentrm_jax.evaluation.page import page as filled
from agentrm_jax.evaluation.rows import Report, ScoreRow
from agentrm_jax.evaluation.tables import (
    comparison_sentences,
    gap_table,
    heat_map,
    method_table,
    part_table,
    score_quality,
    scored_by,
)
from agentrm_jax.evaluation.viewer import Viewer
from agentrm_jax.runtime.json_files import read_record, write_json_atomic, write_text_atomic
from agentrm_jax.runtime.run_directory import RESOLVED, StageRow, flat
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.stage_files import KEY

Row = Mapping[str, Any]
T = TypeVar("T", bound=Mapping[str, Any])

SCRIPTS = ("page.js", "tree.js", "viewer.js")
"""The scripts of the page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportPage:
    """The parts of a report's page next to the results.

    Attributes:
      title: The name of the run; that of the folder if it is empty.
      metrics: Rows of metrics.jsonl: `stage`, `update`, `loss`, ...
      scores: The scored test trajectories.
      viewer: The searches, None without any.
      config: The settings, by key.
      versions: The versions and the machine.
      differing: If several runs are compared, the settings in which they differ: by key the value
        of each run, in the order of `run_names`.
      run_names: The names of the runs, if several are compared.
    """

    title: str = ""
    metrics: Sequence[Row] = ()
    scores: Sequence[ScoreRow] = ()
    viewer: Viewer | None = None
    config: Row = dataclasses.field(default_factory=dict)
    versions: Row = dataclasses.field(default_factory=dict)
    differing: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    run_names: Sequence[str] = ()


def run_page(run_directory: pathlib.Path, **shown: Any) -> ReportPage:
    """Returns the page of a run, with its configuration and versions.

    Args:
      run_directory: The run's folder; its config.resolved.yaml and versions.json are shown if it
        has them.
      shown: Other attributes of `ReportPage`.
    """
    return ReportPage(config=_config(run_directory), versions=_versions(run_directory), **shown)


def write_report(
    directory: pathlib.Path, parts: Mapping[str, Any], page: ReportPage | None = None
) -> pathlib.Path:
    """Writes results.json, report.json and report.html.

    Args:
      directory: The folder to write, most often that of the run.
      parts: Keys of report.json: `results` and `comparisons`, and those of `Report` that are known.
      page: What the page shows next to them.

    Returns:
      The path of report.html.
    """
    page = page or ReportPage()
    explored = (row["summary"] for row in parts.get("stages", ()) if row["stage"] == "explore")
    empty = {"results": [], "comparisons": [], "stages": [], "by_n": []}
    report: Any = {
        **empty,
        **parts,
        "trees": next(explored, {}),
        "reward_models": score_quality(page.scores),
    }
    paths = RunPaths(directory)
    write_json_atomic(paths.results, report["results"])
    write_json_atomic(paths.report, report)
    write_text_atomic(
        paths.report_page, render(page.title or directory.resolve().name, report, page)
    )
    return paths.report_page


def render(title: str, report: Report, page: ReportPage) -> str:
    """Returns the HTML of the report."""
    rows, viewer = report["results"], page.viewer
    table = method_table(rows)
    plots = _plots(report, page)
    blocks = {}
    if viewer is not None:
        blocks = {"viewer-data": json.dumps(viewer.data, allow_nan=False)}
        blocks |= {f"search-{number}": text for number, text in enumerate(viewer.searches)}
    return filled(
        "report.html",
        styles=("page.css", "viewer.css"),
        scripts=SCRIPTS,
        blocks=blocks,
        title=title,
        report=report,
        sections=_sections(report, page, plots),
        notes=report.get("notes", []),
        table=table,
        gaps=gap_table(rows, report.get("oracle_gap", [])),
        several=any(entry["run"] for entry in table),
        seeds=any(entry["cost"].get("n_seeds", 1) > 1 for entry in table),
        parts=[part_table(rows, of) for of in ("environment", "kind")],
        holm=any("p_holm" in row for row in report["comparisons"]),
        sentences=comparison_sentences(report["comparisons"]),
        heat=heat_map(report.get("transfer", [])),
        plots=plots,
        viewer=viewer,
        stages=_stage_table(report["stages"]),
        config=_settings(page.config),
        versions=_settings(page.versions),
        differing={"names": page.run_names, "rows": page.differing} if page.differing else None,
    )


def _sections(report: Report, page: ReportPage, plots: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The anchors and names of the sections that the page has."""
    known = {
        "results": ("Results", True),
        "comparisons": ("Comparisons", report["comparisons"]),
        "budget": ("Tokens", plots["budget"]),
        "by-n": ("Best-of-n", plots["by_n"]),
        "transfer": ("Transfer", report.get("transfer")),
        "scores": ("Scores", plots["scores"]),
        "depth": ("Values", plots["depth"]),
        "searches": ("Searches", page.viewer),
        "curves": ("Learning curves", plots["curves"]),
        "stages": ("Stages", report["stages"]),
        "settings": ("Settings", page.config or page.versions or page.differing),
    }
    return [(anchor, name) for anchor, (name, there) in known.items() if there]


def _plots(report: Report, page: ReportPage) -> dict[str, list[Markup]]:
    # matplotlib is slow to import, and only this needs it.
    from agentrm_jax.evaluation import curve_plots, plots

    found: dict[str, list[Markup]] = {
        "forest": [], "budget": [], "by_n": [], "curves": [], "scores": [], "depth": [],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts
        if report["comparisons"]:
            found["forest"].append(Markup(plots.forest(_shown(report["comparisons"]))))
        if curves := report.get("curves"):
            found["budget"].append(Markup(curve_plots.score_against_tokens(_shown(curves))))
        elif report["results"]:
            found["budget"].append(Markup(plots.score_against_budget(_shown(report["results"]))))
        if any(row["n"] > 1 for row in report["by_n"]):
            found["by_n"].append(Markup(plots.score_by_n(_shown(report["by_n"]))))
        if any("loss" in row for row in page.metrics):
            found["curves"].append(Markup(plots.learning_curves(_shown(page.metrics))))
        shown = _shown(page.scores)
        for name in dict.fromkeys(map(scored_by, shown)):
            found["scores"].append(Markup(plots.score_against_outcome(shown, name)))
        if depths := report.get("value_by_depth"):
            found["depth"].append(Markup(curve_plots.value_by_depth(depths)))
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
