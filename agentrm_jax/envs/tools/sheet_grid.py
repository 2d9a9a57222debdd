"""A sheet's cells, never changed in place: what is done to it gives another grid.

It behaves as Google's sheets do as far as AgentBoard's tools reach.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.sheet_formula import Book, Formula, format_source
from agentrm_jax.envs.tools.sheet_numbers import GENERAL, shown
from agentrm_jax.envs.tools.sheet_references import after_deletion, after_insertion, moved
from agentrm_jax.envs.tools.sheet_values import FormulaError, Scalar

ROWS, COLUMNS = 0, 1  # the axes
_DEEPEST = 60  # formulas of formulas whose format is looked for


Value = str | float | bool | None | Formula


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One cell."""

    value: Value = None
    format: str = GENERAL
    note: str = ""


EMPTY = Cell()


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of cells, counted from 1, its ends included."""

    top: int
    left: int
    bottom: int
    right: int

    def meets(self, other: Box) -> bool:
        apart = self.bottom < other.top or other.bottom < self.top
        return not (apart or self.right < other.left or other.right < self.left)

    def holds(self, other: Box) -> bool:
        higher = self.top <= other.top and other.bottom <= self.bottom
        return higher and self.left <= other.left and other.right <= self.right


class GridError(Exception):
    """An operation that a sheet refuses; the message is Google's or like it."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A sheet.

    Attributes:
      rows: The cells; all rows have the same length.
      merges: Cells that are one; its value is that of the first.
      frozen: How many rows and columns are frozen; such rows stay when the sheet is sorted.
      name: What formulas call it.
      others: The other sheets, for formulas.
    """

    rows: tuple[tuple[Cell, ...], ...]
    merges: tuple[Box, ...] = ()
    frozen: tuple[int, int] = (0, 0)
    name: str = dataclasses.field(default="", compare=False)
    others: Mapping[str, Grid] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def height(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def cell(self, row: int, column: int) -> Cell:
        inside = 0 < row <= self.height and 0 < column <= self.width
        return self.rows[row - 1][column - 1] if inside else EMPTY

    def entered(self, row: int, column: int) -> Value:
        return self.cell(row, column).value

    def value(self, row: int, column: int) -> Scalar:
        """A cell's value; of a formula its result, which is computed once.

        Raises:
          FormulaError: The result is an error.
        """
        return self._book.value((self.name, row, column))

    @functools.cached_property
    def _book(self) -> Book:
        return Book({**self.others, self.name: self})

    def text(self, row: int, column: int) -> str:
        """A cell as it is shown."""
        cell = self.cell(row, column)
        if not isinstance(cell.value, Formula):
            return shown(cell.value, cell.format)
        try:
            return shown(self.value(row, column), self._format(cell.value, cell.format))
        except FormulaError as error:
            return str(error)

    def result_text(self, formula: Formula, number_format: str) -> str:
        """Returns the value of a formula, as a cell of this format shows it."""
        try:
            result = self._book.result(formula, self.name)
            return shown(result, self._format(formula, number_format))
        except FormulaError as error:
            return str(error)

    def _format(self, formula: Formula, own: str, depth: int = 0) -> str:
        source = format_source(formula.text)
        if own != GENERAL or source is None or depth > _DEEPEST:
            return own
        cell = self.cell(*source)
        if isinstance(cell.value, Formula):
            return self._format(cell.value, cell.format, depth + 1)
        return cell.format

    def texts(self, box: Box, *, merged: bool = True) -> list[list[str]]:
        """The cells of a box without empty rows below and columns at the right; `[[]]` of none.

        Where it is `merged`, every cell of a merged area has the text of its first one.
        """
        rows = [
            [self.text(row, column) for column in range(box.left, box.right + 1)]
            for row in range(box.top, min(box.bottom, self.height) + 1)
        ]
        width = max((len(row) - _blank(row[::-1]) for row in rows), default=0)
        while rows and not any(rows[-1]):
            rows.pop()
        rows = [row[:width] for row in rows] or [[]]
        return self._with_merges(rows, box) if merged and width else rows

    @functools.cached_property
    def all_texts(self) -> list[list[str]]:
        """All cells as `texts` gives them; not to be changed."""
        return self.texts(self._used)

    @functools.cached_property
    def unmerged_texts(self) -> list[list[str]]:
        return self.texts(self._used, merged=False)

    @property
    def _used(self) -> Box:
        """The smallest box from the first cell on that holds all values; at least that cell."""
        height, width = 1, 1
        for row, cells in enumerate(self.rows, start=1):
            last = next((c for c in range(len(cells), 0, -1) if cells[c - 1].value is not None), 0)
            height, width = row if last else height, max(width, last)
        return Box(1, 1, height, width)

    def put(self, cells: Mapping[tuple[int, int], Cell]) -> Grid:
        """The grid with other cells at these (row, column)."""
        rows = list(self.rows)
        for number in {row for row, _ in cells}:
            changed = list(rows[number - 1])
            for (row, column), cell in cells.items():
                if row == number:
                    changed[column - 1] = cell
            rows[number - 1] = tuple(changed)
        return dataclasses.replace(self, rows=tuple(rows))

    def inserted(self, axis: int, at: int, count: int, *, like_before: bool) -> Grid:
        """With empty rows or columns put in before `at`, in the format of a neighbour."""
        lines = self._lines(axis)
        if not 1 <= at <= len(lines) + (1 if like_before else 0):
            kind = ("row", "column")[axis]
            raise GridError(
                f"Invalid requests[0].insertDimension: range.startIndex[{at - 1}] must be less "
                f"than the grid size ({len(lines)}) if inheritFromBefore is false."
                if not like_before and at > 0
                else f"Invalid requests[0].insertDimension: no {kind} {at}"
            )
        pattern = lines[at - 2] if like_before and at > 1 else lines[at - 1]
        new = tuple(Cell(format=cell.format) for cell in pattern)
        grid = self._from_lines(axis, (*lines[: at - 1], *[new] * count, *lines[at - 1 :]))
        grid = grid._formulas(lambda text, _: after_insertion(text, axis, at, count, self.name))
        boxes = [_grown(box, axis, at, count) for box in self.merges]
        frozen = list(self.frozen)
        if at <= frozen[axis]:
            frozen[axis] += count
        return dataclasses.replace(grid, merges=tuple(boxes), frozen=(frozen[0], frozen[1]))

    def deleted(self, axis: int, at: int) -> Grid:
        """Without row or column `at`."""
        lines = self._lines(axis)
        kind = ("row", "column")[axis]
        if not 1 <= at <= len(lines):
            raise GridError(
                f"Invalid requests[0].deleteDimension: Cannot delete a {kind} that doesn't exist. "
                f"Tried to delete {kind} index {at - 1} but there are only {len(lines)} {kind}s."
            )
        if len(lines) == 1:
            raise GridError(
                f"Invalid requests[0].deleteDimension: You can't delete all the {kind}s on the "
                "sheet."
            )
        grid = self._from_lines(axis, (*lines[: at - 1], *lines[at:]))
        grid = grid._formulas(lambda text, _: after_deletion(text, axis, at, self.name))
        boxes = [box for old in self.merges if (box := _shrunk(old, axis, at)) is not None]
        frozen = list(self.frozen)
        if at <= frozen[axis]:
            frozen[axis] -= 1
        return dataclasses.replace(grid, merges=tuple(boxes), frozen=(frozen[0], frozen[1]))

    def sorted(self, column: int, *, descending: bool) -> Grid:
        """Sorted by a column; frozen rows stay. Empty cells come last, texts after
        numbers (before them where it is descending), and equal ones keep their order."""
        top = self.frozen[ROWS]
        if any(box.bottom > top and box.top != box.bottom for box in self.merges):
            raise GridError(
                "Invalid requests[0].sortRange: You can't sort a range with vertical merges."
            )
        numbers = range(top + 1, self.height + 1)
        keys = {row: self._key(row, column) for row in numbers}
        empty = [row for row in numbers if keys[row] is None]
        full = [row for row in numbers if keys[row] is not None]
        # `reverse` keeps the order of equal ones, too.
        order = [*sorted(full, key=lambda row: keys[row] or (), reverse=descending), *empty]
        rows = [
            _moved_row(self.rows[source - 1], to - source)
            for to, source in zip(numbers, order, strict=True)
        ]
        return dataclasses.replace(self, rows=(*self.rows[:top], *rows))

    def merged(self, box: Box) -> Grid:
        """With the cells of a box as one: what the others held is gone."""
        if any(box.meets(other) and not box.holds(other) for other in self.merges):
            raise GridError(
                "Invalid requests[0].mergeCells: You must select all cells in a merged range to "
                "merge or unmerge them."
            )
        rest = tuple(other for other in self.merges if not box.holds(other))
        places = [
            (row, column)
            for row in range(box.top, box.bottom + 1)
            for column in range(box.left, box.right + 1)
        ]
        if len(places) == 1:
            return dataclasses.replace(self, merges=rest)
        cleared = {p: dataclasses.replace(self.cell(*p), value=None) for p in places[1:]}
        return dataclasses.replace(self.put(cleared), merges=(*rest, box))

    def _key(self, row: int, column: int) -> tuple[int, Any] | None:
        try:
            value = self.value(row, column)
        except FormulaError as error:
            return 3, str(error)
        if value is None or value == "":
            return None
        if isinstance(value, bool):
            return 2, value
        return (1, value.casefold()) if isinstance(value, str) else (0, value)

    def _with_merges(self, rows: list[list[str]], box: Box) -> list[list[str]]:
        first = [list(row) for row in rows]
        for merge in self.merges:
            top, left = merge.top - box.top, merge.left - box.left
            if not (0 <= top < len(rows) and 0 <= left < len(rows[0])):
                continue
            for row in rows[top : merge.bottom - box.top + 1]:
                for column in range(left, min(merge.right - box.left + 1, len(row))):
                    row[column] = first[top][left]
        return rows

    def _lines(self, axis: int) -> Sequence[tuple[Cell, ...]]:
        return self.rows if axis == ROWS else tuple(zip(*self.rows, strict=True))

    def _from_lines(self, axis: int, lines: Iterable[tuple[Cell, ...]]) -> Grid:
        rows = tuple(lines) if axis == ROWS else tuple(zip(*lines, strict=True))
        return dataclasses.replace(self, rows=rows)

    def _formulas(self, change: Any) -> Grid:
        return dataclasses.replace(self, rows=tuple(_changed(row, change) for row in self.rows))


def _changed(row: tuple[Cell, ...], change: Any, by: int = 0) -> tuple[Cell, ...]:
    if not any(isinstance(cell.value, Formula) for cell in row):
        return row
    return tuple(
        dataclasses.replace(cell, value=Formula(change(cell.value.text, by)))
        if isinstance(cell.value, Formula)
        else cell
        for cell in row
    )


def _moved_row(row: tuple[Cell, ...], by: int) -> tuple[Cell, ...]:
    return _changed(row, moved, by) if by else row


def _blank(row: Sequence[str]) -> int:
    """Returns the number of empty texts at the beginning of a row."""
    return next((number for number, text in enumerate(row) if text), len(row))


def _grown(box: Box, axis: int, at: int, count: int) -> Box:
    first, last = ("top", "bottom") if axis == ROWS else ("left", "right")
    changes = {
        side: getattr(box, side) + count for side in (first, last) if getattr(box, side) >= at
    }
    return dataclasses.replace(box, **changes)


def _shrunk(box: Box, axis: int, at: int) -> Box | None:
    first, last = ("top", "bottom") if axis == ROWS else ("left", "right")
    begin, end = getattr(box, first), getattr(box, last)
    begin, end = begin - (begin > at), end - (end >= at)
    new = dataclasses.replace(box, **{first: begin, last: end})
    single = new.top == new.bottom and new.left == new.right
    return None if begin > end or single else new
