"""Tables of results: rows and columns of any keys, with the paper's numbers next to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluation.experiment_plot import Point

PERCENT = ("score_mean", "success_rate")
"""Keys that are shown in percent, as the paper does; gains in points are as well."""
_GAIN = "gain_over_"
_SIGNED = (_GAIN, "per_doubling")
_INTERVALS = {"score_mean": "score_ci95"}
_NAMES = {
    "score_mean": "score, %",
    "success_rate": "success, %",
    "score_ci95": "95% interval",
    "per_doubling": "points for each doubling",
}
SEPARATOR = " · "
STAR_NOTE = (
    "* p below 0.05, after Holm's correction for all gains of the table if these are more than five"
)
"""The meaning of a star at a gain."""


class Cell(NamedTuple):
    """A cell: a number as text, its interval as text, and the number (None if there is none)."""

    text: str
    interval: str = ""
    value: float | None = None


class ShownTable(TypedDict):
    """A table as it is printed.

    Attributes:
      title: Its title.
      head: The names of its columns. The first one is that of the value if the columns are not
        values, else empty.
      rows: The name of each row with its cells; None if there is no result.
      paper: The paper's number of each row, empty if it has none; no column if all are empty.
    """

    title: str
    head: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    paper: list[str]


def shown_table(
    table: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], paper: Sequence[Mapping[str, Any]]
) -> ShownTable:
    """Returns a table of results.

    Args:
      table: `title`, `rows`, `columns`, `values` and `baselines`; see `TableConfig`.
      rows: The results.
      paper: Numbers of the paper; those with a `row` of this table are shown next to it.

    Raises:
      UserError: Two results belong into one cell.
    """
    found: dict[str, dict[str, Cell]] = {}
    values = [*table["values"], *(f"{_GAIN}{name}" for name in table.get("baselines", ()))]
    for row in rows:
        name = SEPARATOR.join(_key(row, key) for key in table["rows"])
        cells = found.setdefault(name, {})
        for value in values:
            column = _key(row, table["columns"]) if table["columns"] else value
            if column in cells:
                raise UserError(
                    f"table {table['title']!r}: two results in row {name!r}, column {column!r}; "
                    "add a key to rows that tells them apart"
                )
            if row.get(value) is not None:
                cells[column] = _cell(row, value)
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    numbers = {
        name: ", ".join(f"{p['value']:g}" for p in paper if p["row"] == name) for name in found
    }
    return {
        "title": table["title"],
        "head": [_name(table["values"][0]) if table["columns"] else "", *map(_name, columns)],
        "rows": [
            (name, [cells.get(column) for column in columns]) for name, cells in found.items()
        ],
        "paper": list(numbers.values()) if any(numbers.values()) else [],
    }


def _name(key: str) -> str:
    """The name of a column."""
    gain = key.removeprefix(_GAIN)
    if gain != key:
        return f"over {gain.replace('_', ' ')}"
    return _NAMES.get(key, key.replace("_", " "))


def _key(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "-" if value is None else str(value)


def _cell(row: Mapping[str, Any], key: str) -> Cell:
    value, scale, places = row[key], 1.0, 3
    if isinstance(value, str | bool):
        return Cell(str(value))
    if isinstance(value, int):
        return Cell(f"{value:,}", value=float(value))
    if key in PERCENT or key.startswith(_SIGNED):
        scale, places = 100.0, 1
    elif abs(value) >= 10:
        places = 1
    sign = "+" if key.startswith(_SIGNED) else ""
    numbers = (value, *row.get(_INTERVALS.get(key, f"{key}_ci95"), ()))
    shown, *ends = (f"{scale * number:{sign}.{places}f}" for number in numbers)
    star = "*" if row.get(f"{key}_p_holm", 1.0) < 0.05 else ""
    return Cell(shown, f"[{', '.join(ends)}]{star}" if ends else "", float(value))


def star_note(table: ShownTable) -> str:
    """Returns the meaning of the stars of a table; empty if it has none."""
    cells = [cell for _, row in table["rows"] for cell in row if cell is not None]
    return STAR_NOTE if any(cell.interval.endswith("*") for cell in cells) else ""


def markdown(table: ShownTable) -> str:
    """Returns a table as Markdown, intervals in the cells."""
    head = [*table["head"], *(["paper"] if table["paper"] else [])]
    lines = [f"### {table['title']}", "", _line(head), _line(["---"] * len(head))]
    for number, (name, cells) in enumerate(table["rows"]):
        paper = [table["paper"][number] or "-"] if table["paper"] else []
        lines.append(_line([name, *map(cell_text, cells), *paper]).replace("*", "\\*"))
    if note := star_note(table):
        lines += ["", f"\\{note}."]
    return "\n".join(lines)


def cell_text(cell: Cell | None) -> str:
    """Returns a cell as text: the number and its interval."""
    if cell is None:
        return "-"
    return f"{cell.text} {cell.interval}".rstrip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def line_plot(
    table: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Sequence[tuple[str, list[Point]]]:
    """Returns the lines of a figure: a name and its points with their intervals, by the key `x`.

    Args:
      table: The table; the first of its `values` is drawn over its `x`.
      rows: The results; those without a number at `x` are left out.
    """
    names = [key for key in (*table["rows"], table["columns"]) if key and key != table["x"]]
    lines: dict[str, list[Point]] = {}
    key = table["values"][0]
    for row in rows:
        value, ends = row.get(key), row.get(_INTERVALS.get(key, f"{key}_ci95"))
        try:
            x = float(row[table["x"]])
        except (KeyError, TypeError, ValueError):
            continue
        if value is not None:
            name = SEPARATOR.join(_key(row, key) for key in names)
            interval = (float(ends[0]), float(ends[1])) if ends else None
            lines.setdefault(name, []).append(Point(x, float(value), interval))
    return [(name, sorted(points, key=lambda p: p.x)) for name, points in lines.items()]
