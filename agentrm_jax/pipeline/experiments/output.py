"""The tables of an experiment: experiment.json, experiment.md, experiment.html and the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrm_jax.core.text import printable
from agentrm_jax.evaluation.experiment_plot import lines_svg
from agentrm_jax.evaluation.experiment_table import (
    Cell,
    ShownTable,
    cell_text,
    line_plot,
    markdown,
    shown_table,
    star_note,
)
from agentrm_jax.evaluation.page import page
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.experiments.jobs import Plan
from agentrm_jax.pipeline.experiments.load import Experiment
from agentrm_jax.pipeline.experiments.measures import MeasuredTable
from agentrm_jax.runtime.json_files import write_json_atomic, write_text_atomic
from agentrm_jax.runtime.run_directory import STAGE_FILE, read_stage_record, versions

RECORD, TEXT, PAGE = "experiment.json", "experiment.md", "experiment.html"


def write_outputs(
    experiment: Experiment, planned: Plan, tables: Sequence[MeasuredTable]
) -> dict[str, Any]:
    """Writes the record, the text and the page of an experiment.

    Args:
      experiment: The experiment.
      planned: Its stages, which have ended.
      tables: Its results.

    Returns:
      The record, as in experiment.json.
    """
    config = experiment.config
    record = {
        "experiment": experiment.name,
        "size": experiment.size,
        "title": config.title,
        "question": config.question,
        "source": config.source,
        "seeds": sorted({run.config.seed for run in planned.evaluated}),
        "paper": [plain(number) for number in config.paper],
        "tables": list(tables),
        "stages": [
            {
                "name": job.name,
                "runs": job.runs,
                "seconds": read_stage_record(job.folder / STAGE_FILE)["seconds"],
            }
            for job in planned.jobs.values()
        ],
        "versions": versions(),
    }
    shown = shown_tables(record)
    write_json_atomic(planned.output / RECORD, record)
    write_text_atomic(planned.output / TEXT, _text(record, shown))
    write_text_atomic(planned.output / PAGE, _page(record, shown))
    return record


def shown_tables(record: Mapping[str, Any]) -> list[ShownTable]:
    """Returns the tables of a record as they are printed; the paper's numbers are in the first."""
    return [
        shown_table(each["table"], each["rows"], [] if number else record["paper"])
        for number, each in enumerate(record["tables"])
    ]


def print_tables(record: Mapping[str, Any]) -> None:
    """Prints the tables of a record, and the paper's numbers as a list."""
    console = Console(width=None if Console().is_terminal else 140)
    for shown in shown_tables(record):
        table = Table(title=printable(shown["title"]), title_justify="left")
        paper = ["paper"] if shown["paper"] else []
        for number, name in enumerate([*shown["head"], *paper]):
            table.add_column(Text(printable(name)), justify="right" if number else "left")
        for number, (name, cells) in enumerate(shown["rows"]):
            own = [shown["paper"][number] or "-"] if shown["paper"] else []
            table.add_row(*(Text(printable(t)) for t in (name, *map(cell_text, cells), *own)))
        console.print(table)
        if note := star_note(shown):
            print(f"{note}.")
    for number in record["paper"]:
        print(f"paper: {number['label']}: {number['value']:g} ({number['source']})")


def _text(record: Mapping[str, Any], shown: Sequence[ShownTable]) -> str:
    seeds = ", ".join(map(str, record["seeds"]))
    parts = [
        f"# {record['title']}",
        f"{record['question']} ({record['source']}; size {record['size']}, seeds {seeds}.)",
        *map(markdown, shown),
    ]
    if record["paper"]:
        lines = ["### The paper", "", "| setting | paper | source |", "|---|---|---|"]
        lines += [f"| {n['label']} | {n['value']:g} | {n['source']} |" for n in record["paper"]]
        parts.append("\n".join(lines))
        parts.append("The paper's numbers are of its own models and tasks.")
    return "\n\n".join(parts) + "\n"


def _page(record: Mapping[str, Any], shown: Sequence[ShownTable]) -> str:
    tables = []
    for each, measured in zip(shown, record["tables"], strict=True):
        table = measured["table"]
        figure = ""
        if table["x"]:
            lines = line_plot(table, measured["rows"])
            figure = Markup(lines_svg(lines, table["x"], table["values"][0].replace("_", " ")))
        tables.append(
            {
                **each,
                "rows": _shaded(each["rows"], table["heat"]),
                "figure": figure,
                "notes": [*filter(None, [star_note(each)]), *measured["notes"]],
            }
        )
    return page(PAGE, title=record["title"], record=record, tables=tables)


def _shaded(
    rows: Sequence[tuple[str, list[Cell | None]]], heat: bool
) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """The rows with a shade of each cell in percent, None without colours."""
    values = [c.value for _, cells in rows for c in cells if c and c.value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)

    def shade(cell: Cell) -> int | None:
        if not heat or cell.value is None or high == low:
            return None
        return round(60 * (cell.value - low) / (high - low))

    return [
        (name, [None if c is None else {**c._asdict(), "shade": shade(c)} for c in cells])
        for name, cells in rows
    ]
