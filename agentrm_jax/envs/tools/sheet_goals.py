"""Goals of our own on small sheets, drawn at random, with the actions that reach them."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.envs.tools.calls import Call
from agentrm_jax.envs.tools.sheet_grid import Cell, Grid
from agentrm_jax.envs.tools.sheet_numbers import GENERAL
from agentrm_jax.envs.tools.sheet_references import column_letters
from agentrm_jax.envs.tools.sheet_world import SheetWorld

_SPARE_ROWS, _SPARE_COLUMNS = 4, 3
_NAMES = ("Ada", "Boris", "Chen", "Dunja", "Emil", "Farida", "Goran", "Hilde", "Ines", "Joost",
          "Kofi", "Lene", "Marek", "Noor", "Otto", "Pilar")  # fmt: skip
_GOODS = ("lamp", "chair", "kettle", "rug", "mirror", "shelf", "clock", "vase", "pillow", "stool",
          "basket", "candle", "tray", "curtain")  # fmt: skip
_JOBS = ("Paint door", "Fix tap", "Mow lawn", "Clean gutter", "Oil hinge", "Hang picture",
         "Wax floor", "Mend roof", "Wash car", "Stack wood", "Trim hedge")  # fmt: skip

Values = list[list[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theme:
    """The subject of a table.

    Attributes:
      titles: Of the columns; the first names the records.
      records: Names to choose from.
      draws: How the other columns' values are drawn.
      formats: Number formats of the columns.
      group: Which column (from 0) sorts records into groups.
      numbers: Columns with numbers.
      totals: A column that is empty except for its title, what goes there, and from which columns.
    """

    titles: tuple[str, ...]
    records: tuple[str, ...]
    draws: tuple[Callable[[random.Random], Any], ...]
    formats: tuple[str, ...]
    group: int
    numbers: tuple[int, ...]
    totals: tuple[int, str, int, int] | None = None


_THEMES = (
    Theme(
        titles=("Product", "Shop", "Price", "Stock", "Value"),
        records=_GOODS,
        draws=(
            lambda rng: rng.choice(("North", "South", "East")),
            lambda rng: rng.randint(10, 900) / 10,
            lambda rng: float(rng.randint(1, 80)),
        ),
        formats=(GENERAL, GENERAL, "0.00", "0", GENERAL),
        group=1,
        numbers=(2, 3),
        totals=(4, "PRODUCT", 2, 3),
    ),
    Theme(
        titles=("Name", "Group", "Swimming", "Running", "Jumping", "Sum"),
        records=_NAMES,
        draws=(
            lambda rng: rng.choice(("red", "blue", "green")),
            lambda rng: float(rng.randint(10, 99)),
            lambda rng: float(rng.randint(10, 99)),
            lambda rng: float(rng.randint(10, 99)),
        ),
        formats=(GENERAL, GENERAL, "0.0", "0.0", "0.0", GENERAL),
        group=1,
        numbers=(2, 3, 4),
        totals=(5, "SUM", 2, 4),
    ),
    Theme(
        titles=("Job", "Status", "Who", "Hours"),
        records=_JOBS,
        draws=(
            lambda rng: rng.choice(("open", "started", "done")),
            lambda rng: rng.choice(_NAMES),
            lambda rng: float(rng.randint(1, 60)),
        ),
        formats=(GENERAL, GENERAL, GENERAL, GENERAL),
        group=1,
        numbers=(3,),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetDraw:
    """A table, a goal, the steps and the sheet that they lead to."""

    values: Values
    formats: Sequence[str]
    goal: str
    steps: list[Demonstration]
    answer: list[list[str]]


def grid_of(values: Sequence[Sequence[Any]], formats: Sequence[str]) -> Grid:
    """A sheet with these values, each column in its format except for the title, and spare room."""
    blank = (Cell(),) * _SPARE_COLUMNS
    rows = [
        (
            *(
                Cell(value=value, format=column if number else GENERAL)
                for value, column in zip(row, formats, strict=True)
            ),
            *blank,
        )
        for number, row in enumerate(values)
    ]
    empty = (*(Cell(format=column) for column in formats), *blank)
    return Grid(rows=(*rows, *[empty] * _SPARE_ROWS))


def draw_sheet(seed: str) -> SheetDraw | None:
    """A random table with a goal of one to three parts, or None if they do not fit."""
    rng = random.Random(seed)
    theme = rng.choice(_THEMES)
    values = _table(rng, theme)
    work = _Work(SheetWorld({"Sheet1": grid_of(values, theme.formats)}, "Sheet1"), theme)
    parts = rng.sample(_PARTS, rng.randint(1, 2)) + rng.sample(_ENDS, rng.randint(0, 1))
    said = []
    for part in parts:
        if not part(rng, work):
            return None
        said.append(work.said.pop())
    work.do("Everything is done.", "finish")
    before = SheetWorld({"Sheet1": grid_of(values, theme.formats)}, "Sheet1").values()
    if work.world.values() == before:
        return None
    goal = f'"Sheet1" holds a table. {" Then ".join(_lowered(said))}'
    return SheetDraw(
        values=values,
        formats=theme.formats,
        goal=goal,
        steps=work.steps,
        answer=work.world.values(),
    )


def _lowered(parts: Sequence[str]) -> list[str]:
    return [parts[0], *(part[0].lower() + part[1:] for part in parts[1:])]


def _table(rng: random.Random, theme: Theme) -> Values:
    rows: Values = [list(theme.titles)]
    for record in rng.sample(theme.records, rng.randint(4, 7)):
        drawn = [draw(rng) for draw in theme.draws]
        empty = [None] * (len(theme.titles) - 1 - len(drawn))
        rows.append([record, *drawn, *empty])
    return rows


class _Work:
    """Steps on a sheet, and what was said to ask for them."""

    def __init__(self, world: SheetWorld, theme: Theme) -> None:
        self.world, self.theme = world, theme
        self.steps: list[Demonstration] = []
        self.said: list[str] = []

    def do(self, thought: str, name: str, **arguments: Any) -> None:
        action = f"{name} with Action Input: {json.dumps(arguments)}"
        self.steps.append(Demonstration(thought=thought, action=action))
        result, self.world = self.world.call(Call(name, arguments))
        assert result.valid, (action, result)

    def records(self) -> list[tuple[int, list[str]]]:
        """Row numbers and texts of the records."""
        return list(enumerate(self.world.values(), start=1))[1:]


def _delete_group(rng: random.Random, work: _Work) -> bool:
    column = work.theme.group
    groups = sorted({row[column] for _, row in work.records()})
    chosen = rng.choice(groups)
    rows = [number for number, row in work.records() if row[column] == chosen]
    if len(rows) > len(work.records()) - 2:
        return False
    title = work.theme.titles[column]
    work.said.append(f'Delete all records whose "{title}" is "{chosen}".')
    work.do(f"I look for {chosen}.", "filter_cells", query=chosen, in_column=column + 1)
    work.do(f"I delete rows {rows}.", "delete_batch_data", dimension="row", index_list=rows)
    return True


def _delete_low(rng: random.Random, work: _Work) -> bool:
    column = rng.choice(work.theme.numbers)
    numbers = sorted(float(row[column]) for _, row in work.records())
    if len(numbers) < 3:
        return False
    limit = round(numbers[rng.randrange(1, len(numbers) - 1)])
    rows = [number for number, row in work.records() if float(row[column]) < limit]
    if not rows or len(rows) > len(work.records()) - 2:
        return False
    title = work.theme.titles[column]
    work.said.append(f'Delete all records whose "{title}" is less than {limit}.')
    work.do(f'"{title}" is below {limit} in rows {rows}.', "delete_batch_data",
            dimension="row", index_list=rows)  # fmt: skip
    return True


def _update(rng: random.Random, work: _Work) -> bool:
    column = rng.choice(work.theme.numbers)
    chosen = rng.sample(work.records(), rng.randint(1, 2))
    title = work.theme.titles[column]
    new = [rng.randint(100, 200) for _ in chosen]
    told = [f'"{row[0]}" to {value}' for (_, row), value in zip(chosen, new, strict=True)]
    work.said.append(f'Set the "{title}" of {" and of ".join(told)}.')
    for (number, row), value in zip(chosen, new, strict=True):
        position = f"{column_letters(column + 1)}{number}"
        work.do(f"{row[0]} is in row {number}.", "update_cell", position=position, value=value)
    return True


def _insert(rng: random.Random, work: _Work) -> bool:
    theme, at = work.theme, len(work.records()) + 2
    free = [name for name in theme.records if all(row[0] != name for _, row in work.records())]
    drawn = [rng.choice(free), *(draw(rng) for draw in theme.draws)]
    told = ", ".join(str(value) for value in drawn)
    titles = ", ".join(f'"{title}"' for title in theme.titles[: len(drawn)])
    work.said.append(f"Add one record below the last one, with {titles}: {told}.")
    work.do(f"The first row below the table is {at}.", "insert_rows",
            values_list=[drawn], row_idx=at)  # fmt: skip
    return True


def _total(rng: random.Random, work: _Work) -> bool:
    if work.theme.totals is None:
        return False
    column, operator, first, last = work.theme.totals
    titles, target = work.theme.titles, column_letters(column + 1)
    named = " and ".join(f'"{title}"' for title in titles[first : last + 1])
    kind = "product" if operator == "PRODUCT" else "sum"
    work.said.append(f'Fill the column "{titles[column]}" with each record\'s {kind} of {named}.')
    for number, row in work.records():
        work.do(
            f"The {kind} for {row[0]}.",
            "update_cell_by_formula",
            start_position=f"{column_letters(first + 1)}{number}",
            end_position=f"{column_letters(last + 1)}{number}",
            result_position=f"{target}{number}",
            operator=operator,
        )
    return True


def _drop_column(rng: random.Random, work: _Work) -> bool:
    width = len(work.world.values()[0])
    column = width - 1
    if width != len(work.theme.titles) or work.theme.totals is not None:
        return False
    title = work.theme.titles[column]
    work.said.append(f'Delete the column "{title}".')
    work.do(f"It is column {column + 1}.", "delete_batch_data",
            dimension="col", index_list=[column + 1])  # fmt: skip
    return True


def _sort(rng: random.Random, work: _Work) -> bool:
    width = len(work.world.values()[0])
    columns = [column for column in (0, *work.theme.numbers) if column < width]
    column, down = rng.choice(columns), rng.random() < 0.5
    texts = [row[column] for _, row in work.records()]
    if len(set(texts)) < len(texts):
        return False  # the order of equal ones would be left open
    title, order = work.theme.titles[column], "descending" if down else "ascending"
    work.said.append(f'Sort the records by "{title}" in {order} order, the titles staying on top.')
    work.do("The titles must stay on top.", "freeze_data", dimension="rows", num=1)
    work.do(f'"{title}" is column {column + 1}.', "sort_sheet_by_col",
            col_num=column + 1, order="des" if down else "asc")  # fmt: skip
    return True


_PARTS = (_delete_group, _delete_low, _update, _insert, _total)
_ENDS = (_sort, _sort, _drop_column)
