"""AgentBoard's sheet tools: a workbook of grids, one of them open."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.calls import Call, Tool, ToolError
from agentrm_jax.envs.tools.episode import Result
from agentrm_jax.envs.tools.patterns import Pattern
from agentrm_jax.envs.tools.sheet_formula import Formula
from agentrm_jax.envs.tools.sheet_grid import (
    COLUMNS,
    ROWS,
    Box,
    Cell,
    Grid,
    GridError,
    Value,
)
from agentrm_jax.envs.tools.sheet_numbers import GENERAL, as_number, typed
from agentrm_jax.envs.tools.sheet_references import column_letters, column_number
from agentrm_jax.envs.tools.sheet_tools import AREA, OPERATORS, TOOLS

_NEED_A1 = (
    "In the sheet formula, you should use A1 notation to display {} in the sheet and you can use "
    "get_A1_annotation(row, col) to get its A1 address."
)
_ENDS, _ALL = "the start and end cell address", "all positions"
_LARGEST = 1000  # rows or columns


class _Refused(Exception):
    """The answer of a tool that refuses a call."""


@dataclasses.dataclass(frozen=True, slots=True)
class SheetWorld:
    """The sheets that can be opened, and the name of the open one."""

    sheets: Mapping[str, Grid]
    name: str

    def __post_init__(self) -> None:
        """Tells the open sheet its name and the others, which formulas may refer to."""
        grid = self.sheets[self.name]
        if grid.name != self.name or len(grid.others) < len(self.sheets):
            linked = dataclasses.replace(grid, name=self.name, others=self.sheets)
            object.__setattr__(self, "sheets", {**self.sheets, self.name: linked})

    @property
    def tools(self) -> Sequence[Tool]:
        return TOOLS

    @property
    def grid(self) -> Grid:
        return self.sheets[self.name]

    def values(self) -> list[list[str]]:
        return self.grid.all_texts

    def call(self, call: Call) -> tuple[Result, SheetWorld]:
        given = call.arguments
        action = _ACTIONS.get(call.name)
        if action is None:
            names = [tool.name for tool in TOOLS]
            raise ToolError(
                f"ERROR | Invalid action: {call.name}. Please choose another valid action from "
                f"{names}"
            )
        tool, names = action
        arguments = [given[name] for name in names]
        if call.name in ("update_cell_by_formula", "get_value_by_formula"):
            listed = "position_list" in given
            arguments = [given["position_list"], None, None] if listed else [None]
            arguments += [] if listed else [given["start_position"], given["end_position"]]
            arguments += [given[name] for name in names]
        elif call.name == "filter_cells":
            arguments = [given.get("query"), given.get("in_row"), given.get("in_column")]
        try:
            answer, world = tool(self, *arguments)
        except _Refused as refusal:
            return Result(str(refusal), valid=False), self
        except GridError as error:
            return Result(_api_error(str(error)), valid=False), self
        except Exception as error:  # AgentBoard answers with whatever a tool raises
            return Result(repr(error), valid=False), self
        return Result(answer), world

    def _with(self, grid: Grid) -> SheetWorld:
        return dataclasses.replace(self, sheets={**self.sheets, self.name: grid})

    def _changed(self, grid: Grid) -> tuple[Any, SheetWorld]:
        world = self._with(grid)
        return world.values(), world

    def _open(self, name: Any) -> tuple[Any, SheetWorld]:
        if name not in self.sheets:
            raise _Refused(f"WorksheetNotFound({name!r})")
        number = list(self.sheets).index(name)
        sheets = {
            key: dataclasses.replace(grid, name="", others={}) if key == self.name else grid
            for key, grid in self.sheets.items()
        }
        return f"<Worksheet {name!r} id:{number}>", SheetWorld(sheets, name)

    def _delete_sheet(self, name: Any) -> tuple[Any, SheetWorld]:
        # So it is in AgentBoard, which hands a name to a function that wants a sheet.
        raise AttributeError(f"{type(name).__name__!r} object has no attribute 'id'")

    def _freeze(self, dimension: Any, number: Any) -> tuple[Any, SheetWorld]:
        count, grid = int(number), self.grid
        if dimension not in ("rows", "columns"):
            raise _Refused(repr("Error: the dimension should be one of the rows/columns"))
        axis = ROWS if dimension == "rows" else COLUMNS
        if not 0 <= count < (grid.height, grid.width)[axis]:
            raise GridError(f"You can't freeze all visible {dimension} on the sheet.")
        frozen = list(grid.frozen)
        frozen[axis] = count
        grid = dataclasses.replace(grid, frozen=(frozen[0], frozen[1]))
        return f"You have successfully freeze the {dimension} {count}", self._with(grid)

    def _address(self, row: Any, column: Any) -> tuple[Any, SheetWorld]:
        row, column = int(row), int(column)
        if row < 1 or column < 1:
            raise _Refused(f"IncorrectCellLabel('({row}, {column})')")
        self._check(Box(row, column, row, column))
        return _label(row, column), self

    def _insert_columns(self, values: Any, at: Any) -> tuple[Any, SheetWorld]:
        return self._insert(COLUMNS, values, at)

    def _insert_rows(self, values: Any, at: Any) -> tuple[Any, SheetWorld]:
        return self._insert(ROWS, values, at)

    def _insert(self, axis: int, values: Any, at: Any) -> tuple[Any, SheetWorld]:
        lines = _numbers(values)
        shown_rows = self.values()
        at_end = int(at) == (len(shown_rows), len(shown_rows[0]))[axis] + 1
        if not isinstance(at, int):
            raise TypeError(f"unsupported operand type(s) for -: {type(at).__name__!r} and 'int'")
        _check_size(len(lines) + (self.grid.height, self.grid.width)[axis])
        grid = self.grid
        if lines:
            grid = grid.inserted(axis, at, len(lines), like_before=at_end)
        longest = max((len(line) for line in lines), default=0)
        _check_size(longest)
        other = 1 - axis
        missing = longest - (grid.height, grid.width)[other]
        if missing > 0:
            end = (grid.height, grid.width)[other] + 1
            grid = grid.inserted(other, end, missing, like_before=True)
        cells = {}
        for number, line in enumerate(lines):
            for place, value in enumerate(line, start=1):
                row, column = (at + number, place) if axis == ROWS else (place, at + number)
                if value is not None:
                    cells[row, column] = _raw(grid.cell(row, column), value)
        return self._changed(grid.put(cells))

    def _delete(self, dimension: Any, numbers: Any) -> tuple[Any, SheetWorld]:
        order = sorted(numbers, key=int, reverse=True)
        shown_rows = self.values()
        if dimension not in ("row", "col"):
            raise _Refused(repr("Wrong dimension, please choose from row/col"))
        axis = ROWS if dimension == "row" else COLUMNS
        # All rows but one, and all columns.
        most = len(shown_rows) - 1 if axis == ROWS else len(shown_rows[0])
        if len(numbers) == most or (axis == ROWS and len(numbers) > most):
            warning = "Warning: You cannot delete whole sheet at once, please try other functions"
            raise _Refused(repr(warning))
        grid = self.grid
        for number in order:
            if not isinstance(number, int):
                kind = type(number).__name__
                raise TypeError(f"unsupported operand type(s) for -: {kind!r} and 'int'")
            grid = grid.deleted(axis, number)
        return self._changed(grid)

    def _update_cell(self, position: Any, value: Any) -> tuple[Any, SheetWorld]:
        value = as_number(value)
        box = self._cell(position)
        cell = self.grid.cell(box.top, box.left)
        return self._changed(self.grid.put({(box.top, box.left): _entered(cell, value)}))

    def _update_by_formula(
        self, listed: Any, start: Any, end: Any, result: Any, operator: Any
    ) -> tuple[Any, SheetWorld]:
        text = _formula(operator, listed, start, end, (result,), _ALL)
        box = self._box(result, result)
        cell = dataclasses.replace(self.grid.cell(box.top, box.left), value=Formula(text))
        return self._changed(self.grid.put({(box.top, box.left): cell}))

    def _value_by_formula(
        self, listed: Any, start: Any, end: Any, operator: Any
    ) -> tuple[Any, SheetWorld]:
        text = _formula(operator, listed, start, end, (), _ENDS)
        # AgentBoard writes it next to the last column's title and reads it from there.
        title = self.grid.cell(1, len(self.values()[0]))
        return self.grid.result_text(Formula(text), title.format), self

    def _update_range(self, start: Any, end: Any, values: Any) -> tuple[Any, SheetWorld]:
        shown_rows = self.values()
        if start == "A1" and end == _label(len(shown_rows), len(shown_rows[0])):
            warning = "Warning: You cannot update whole sheet at once, please try other functions"
            raise _Refused(repr(warning))
        lines = _numbers(values)
        box = self._box(start, end)
        cells = {}
        for row, line in enumerate(lines, start=box.top):
            for column, value in enumerate(line, start=box.left):
                if row > box.bottom or column > box.right:
                    kind, place = ("row", str(row)) if row > box.bottom else ("column", "")
                    place = place or column_letters(column)
                    raise GridError(
                        f"Requested writing within range [{self._place(box)}], but tried writing "
                        f"to {kind} [{place}]"
                    )
                if value is not None:
                    cells[row, column] = _raw(self.grid.cell(row, column), value)
        return self._changed(self.grid.put(cells))

    def _sort(self, column: Any, order: Any) -> tuple[Any, SheetWorld]:
        number = int(column)
        if order not in ("asc", "des"):
            raise ValueError("Either 'asc' or 'des' should be specified as sort order.")
        if not 1 <= number <= self.grid.width:
            raise GridError(f"Invalid requests[0].sortRange: Invalid dimension index: {number - 1}")
        return self._changed(self.grid.sorted(number, descending=order == "des"))

    def _merge(self, start: Any, end: Any) -> tuple[Any, SheetWorld]:
        return self._changed(self.grid.merged(self._box(start, end)))

    def _update_note(self, position: Any, content: Any) -> tuple[Any, SheetWorld]:
        if not isinstance(content, str):
            raise TypeError(f"Only string allowed as content for a note: '{position} - {content}'")
        box = self._box(position, position)
        cell = dataclasses.replace(self.grid.cell(box.top, box.left), note=content)
        world = self._with(self.grid.put({(box.top, box.left): cell}))
        return f"Updated! the {position}'s note is {content}", world

    def _all(self) -> tuple[Any, SheetWorld]:
        return self.values(), self

    def _area(self, start: Any, end: Any) -> tuple[Any, SheetWorld]:
        rows = self.grid.texts(self._box(start, end))
        if rows == [[]]:
            raise IndexError("list index out of range")  # as gspread does
        return rows, self

    def _cell_value(self, position: Any) -> tuple[Any, SheetWorld]:
        box = self._cell(position)
        return self.grid.text(box.top, box.left) or None, self

    def _filter(self, query: Any, row: Any, column: Any) -> tuple[Any, SheetWorld]:
        row = int(row) if row is not None else None
        column = int(column) if column is not None else None
        if row and column:
            raise TypeError("Either 'in_row' or 'in_column' should be specified.")
        rows = self.grid.unmerged_texts
        # Python counts a negative number from the end, as it does in gspread.
        if column:
            found = [(n, column, line[column - 1]) for n, line in enumerate(rows, start=1)]
        elif row:
            found = [(row, n, text) for n, text in enumerate(rows[row - 1], start=1)]
        else:
            found = [
                (n, m, text)
                for n, line in enumerate(rows, start=1)
                for m, text in enumerate(line, start=1)
            ]
        if isinstance(query, str):
            hits = [(n, m) for n, m, text in found if text == query]
        elif isinstance(query, Pattern):
            search = query.searcher()
            hits = [(n, m) for n, m, text in found if search(text[:1000])]
        else:
            raise AttributeError(f"{type(query).__name__!r} object has no attribute 'search'")
        return [_label(n, m) for n, m in hits if n > 0 and m > 0], self

    def _note(self, position: Any) -> tuple[Any, SheetWorld]:
        box = self._box(position, position)
        return self.grid.cell(box.top, box.left).note, self

    def _cell(self, position: Any) -> Box:
        if _place(position) is None:
            raise _Refused(f"IncorrectCellLabel({position!r})")
        return self._box(position, position)

    def _box(self, start: Any, end: Any) -> Box:
        ends = [place for place in (_place(start), _place(end)) if place is not None]
        if len(ends) < 2:
            area = f"{start}" if start == end else f"{start}:{end}"
            raise GridError(f"Unable to parse range: '{self.name}'!{area}")
        rows, columns = sorted(row for row, _ in ends), sorted(column for _, column in ends)
        box = Box(rows[0], columns[0], rows[1], columns[1])
        self._check(box)
        return box

    def _check(self, box: Box) -> None:
        grid = self.grid
        if box.bottom > grid.height or box.right > grid.width:
            raise GridError(
                f"Range ({self._place(box)}) exceeds grid limits. Max rows: {grid.height}, max "
                f"columns: {grid.width}"
            )

    def _place(self, box: Box) -> str:
        first, last = _label(box.top, box.left), _label(box.bottom, box.right)
        return f"{self.name}!{first}" + ("" if first == last else f":{last}")


# The tool, and the names of what it must be given, in order.
_ACTIONS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "open_sheet": (SheetWorld._open, ("name",)),
    "del_sheet": (SheetWorld._delete_sheet, ("name",)),
    "freeze_data": (SheetWorld._freeze, ("dimension", "num")),
    "get_A1_annotation": (SheetWorld._address, ("row", "col")),
    "insert_cols": (SheetWorld._insert_columns, ("values_list", "col_idx")),
    "insert_rows": (SheetWorld._insert_rows, ("values_list", "row_idx")),
    "delete_batch_data": (SheetWorld._delete, ("dimension", "index_list")),
    "update_cell": (SheetWorld._update_cell, ("position", "value")),
    "update_cell_by_formula": (SheetWorld._update_by_formula, ("result_position", "operator")),
    "update_range": (SheetWorld._update_range, (*AREA, "values_list")),
    "sort_sheet_by_col": (SheetWorld._sort, ("col_num", "order")),
    "merge_cells": (SheetWorld._merge, AREA),
    "update_note": (SheetWorld._update_note, ("position", "content")),
    "get_all_values": (SheetWorld._all, ()),
    "get_range_values": (SheetWorld._area, AREA),
    "get_cell_value": (SheetWorld._cell_value, ("position",)),
    "get_value_by_formula": (SheetWorld._value_by_formula, ("operator",)),
    "filter_cells": (SheetWorld._filter, ()),
    "get_note": (SheetWorld._note, ("position",)),
    "finish": (SheetWorld._all, ()),
}


def _api_error(message: str) -> str:
    return f"APIError({ {'code': 400, 'message': message, 'status': 'INVALID_ARGUMENT'} })"


def _label(row: int, column: int) -> str:
    return f"{column_letters(column)}{row}"


def _place(position: Any) -> tuple[int, int] | None:
    """Row and column, or None if the text is no position."""
    found = re.fullmatch(r"([A-Za-z]{1,3})([1-9]\d{0,6})", str(position))
    return None if found is None else (int(found[2]), column_number(found[1]))


def _formula(
    operator: Any, listed: Any, start: Any, end: Any, more: tuple[Any, ...], which: str
) -> str:
    if operator not in OPERATORS:
        quoted = ", ".join(f'"{name}"' for name in OPERATORS)
        raise _Refused(repr(f"the operator should be one of the [{quoted}]"))
    positions = [start, end] if listed is None else list(listed)
    if not all(re.match(r"^[A-Z]{1}[0-9]+$", position) for position in (*positions, *more)):
        raise _Refused(repr(_NEED_A1.format(which if listed is None else _ALL)))
    separator = ":" if listed is None else ","
    return f"{operator}({separator.join(positions)})"


def _numbers(values: Any) -> list[list[Any]]:
    """A list of lists with numbers where Python's `float` reads one."""
    lines = [[as_number(value) for value in line] for line in values]
    for line in lines:
        for value in line:
            if not isinstance(value, str | float):
                raise TypeError(f"{type(value).__name__} is not a cell's value")
    return lines


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise GridError("This action would increase the number of cells above the limit.")


def _raw(cell: Cell, value: str | float) -> Cell:
    """The cell with a value that is taken as it is."""
    return dataclasses.replace(cell, value=None if value == "" else value)


def _entered(cell: Cell, value: Any) -> Cell:
    """The cell with a value as if a person had typed it."""
    new: Value = value
    number_format: str | None = None
    if isinstance(value, str):
        if value.startswith("=") and len(value) > 1:
            new = Formula(value[1:])
        elif cell.format != "@":
            new, number_format = typed(value)
    if number_format is not None and cell.format == GENERAL:
        cell = dataclasses.replace(cell, format=number_format)
    return dataclasses.replace(cell, value=None if new == "" else new)
