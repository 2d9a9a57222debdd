"""AgentBoard's workbook, read once."""

from __future__ import annotations

import functools
import importlib.util
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.data_directory import require
from agentrm_jax.envs.tools.sheet_grid import Box, Cell, Formula, Grid

FILE = "tool/sheet_test.xlsx"
SOURCE = "https://github.com/hkust-nlp/AgentBoard (agentboard/utils/sheet/Test Sheet-For Copy.xlsx)"
INSTALL = "openpyxl is not installed: pip install 'agentrm-jax[tools]'"

_MOST_BYTES = 64 << 20


def workbook() -> Mapping[str, Grid]:
    """The sheets by name, those with answers left out.

    Raises:
      UserError: The file or openpyxl is missing.
    """
    return _read(require(FILE, SOURCE))


def answers() -> Mapping[str, Grid]:
    """The sheets with answers, under the names of the sheets that they belong to."""
    grids = _all(require(FILE, SOURCE))
    names = {name: name.replace("Answer", "Sheet") for name in grids if name.startswith("Answer")}
    return {sheet: grids[name] for name, sheet in names.items()}


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Mapping[str, Grid]:
    return {name: grid for name, grid in _all(path).items() if not name.startswith("Answer")}


@functools.lru_cache(maxsize=1)
def _all(path: Path) -> Mapping[str, Grid]:
    if importlib.util.find_spec("openpyxl") is None:
        raise UserError(INSTALL)
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"it holds more than {_MOST_BYTES:,} bytes")
        book = openpyxl.load_workbook(path)
    except Exception as error:  # whatever a broken file makes it raise
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); get it from {SOURCE}"
        ) from None
    return {sheet.title: _grid(sheet) for sheet in book.worksheets}


def _grid(sheet: Any) -> Grid:
    rows = tuple(tuple(_cell(cell) for cell in row) for row in sheet.iter_rows())
    merges = [Box(m.min_row, m.min_col, m.max_row, m.max_col) for m in sheet.merged_cells.ranges]
    return Grid(rows=rows, merges=tuple(sorted(merges, key=lambda box: (box.top, box.left))))


def _cell(cell: Any) -> Cell:
    value = cell.value
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif isinstance(value, str) and value.startswith("=") and cell.data_type == "f":
        value = Formula(value[1:])
    elif not isinstance(value, str | float | bool | None):
        value = str(value)
    comment = getattr(cell, "comment", None)
    return Cell(value=value, format=cell.number_format, note=comment.text if comment else "")
