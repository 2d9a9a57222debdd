"""References of formulas: cells, areas, whole columns and rows, also of other sheets."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

_CELL = r"\$?[A-Za-z]{1,3}\$?[1-9]\d{0,6}"
_COLUMN = r"\$?[A-Za-z]{1,3}"
_ROW = r"\$?[1-9]\d{0,6}"
_SHEET = r"(?:'(?:[^']|'')+'|[A-Za-z_][\w.]*)!"
AREA = (
    rf"(?:{_SHEET})?(?:{_CELL}(?:\s*:\s*(?:{_CELL}|{_COLUMN}))?"
    rf"|{_COLUMN}\s*:\s*(?:{_CELL}|{_COLUMN})|{_ROW}\s*:\s*{_ROW})(?![\w(.!$])"
)
"""The text of a reference."""
_IN_FORMULA = re.compile(rf"(?<![\w.$!']){AREA}")
_END = re.compile(r"(?:(\$?)([A-Za-z]{1,3}))?(?:(\$?)([1-9]\d{0,6}))?")
_TEXTS = re.compile(r'("(?:[^"]|"")*")')


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """One end of an area; a whole column has no row, a whole row no column."""

    fixed_column: bool
    column: int | None
    fixed_row: bool
    row: int | None

    def place(self, axis: int) -> int | None:
        return (self.row, self.column)[axis]

    def at(self, axis: int, place: int) -> End:
        return dataclasses.replace(self, **{("row", "column")[axis]: place})

    def __str__(self) -> str:
        column = (
            "" if self.column is None else "$" * self.fixed_column + column_letters(self.column)
        )
        return column + ("" if self.row is None else "$" * self.fixed_row + str(self.row))


@dataclasses.dataclass(frozen=True, slots=True)
class Area:
    """The target of a reference: the area between two ends, or a cell.

    Attributes:
      sheet: The name of the sheet; None: the formula's own.
      ends: One or two, in the order in which they are written.
    """

    sheet: str | None
    ends: tuple[End, ...]

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right in a sheet of this size; whole columns and rows end with it."""
        rows = [end.row for end in self.ends]
        columns = [end.column for end in self.ends]
        top, bottom = _span(rows, height)
        left, right = _span(columns, width)
        return top, left, bottom, right

    def shaped_like(self, other: Area) -> Area:
        """The area that begins where this one does and is as large as another; this one, if one
        of them has no end."""
        places = [p for end in (*self.ends, *other.ends) for p in (end.row, end.column)]
        if None in places:
            return self
        top, left, _, _ = self.box(0, 0)
        above, before, below, after = other.box(0, 0)
        first = End(fixed_column=False, column=left, fixed_row=False, row=top)
        last = dataclasses.replace(first, row=top + below - above, column=left + after - before)
        return Area(self.sheet, (first, last))

    def __str__(self) -> str:
        sheet = "" if self.sheet is None else f"{_quoted(self.sheet)}!"
        return sheet + ":".join(map(str, self.ends))


@functools.lru_cache(maxsize=4096)
def read_area(text: str) -> Area:
    """The area of a text that `AREA` fits."""
    sheet, mark, rest = text.rpartition("!")
    if sheet.startswith("'"):
        sheet = sheet[1:-1].replace("''", "'")
    return Area(sheet if mark else None, tuple(_end(end.strip()) for end in rest.split(":")))


def column_number(letters: str) -> int:
    """`A` is 1, `AA` is 27."""
    return functools.reduce(lambda n, letter: 26 * n + ord(letter) - 64, letters.upper(), 0)


def column_letters(number: int) -> str:
    """1 is `A`, 27 is `AA`."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def moved(text: str, rows: int) -> str:
    """Returns a formula after its cell moved down by a number of rows, as in a sorted sheet."""

    def shift(area: Area) -> Area | None:
        ends = [
            end if end.row is None or end.fixed_row else end.at(0, end.row + rows)
            for end in area.ends
        ]
        inside = all(end.row is None or end.row > 0 for end in ends)
        return Area(area.sheet, tuple(ends)) if inside else None

    return _each(text, shift)


def after_insertion(text: str, axis: int, at: int, count: int, sheet: str = "") -> str:
    """A formula after rows (axis 0) or columns (axis 1) were put in before `at` in a sheet."""

    def shift(area: Area) -> Area:
        if area.sheet not in (None, sheet):
            return area
        ends = [
            end.at(axis, place + count) if (place := end.place(axis)) and place >= at else end
            for end in area.ends
        ]
        return Area(area.sheet, tuple(ends))

    return _each(text, shift)


def after_deletion(text: str, axis: int, at: int, sheet: str = "") -> str:
    """A formula after row or column `at` of a sheet was deleted; an area that loses an end gets
    shorter."""

    def shift(area: Area) -> Area | None:
        places = [end.place(axis) for end in area.ends]
        if area.sheet not in (None, sheet):
            return area
        if all(place == at for place in places):
            return None
        last = max(place or 0 for place in places)
        ends = [
            end.at(axis, place - 1) if place and (place > at or place == at == last) else end
            for end, place in zip(area.ends, places, strict=True)
        ]
        return Area(area.sheet, tuple(ends))

    return _each(text, shift)


def _each(text: str, change: Callable[[Area], Area | None]) -> str:
    """Changes references outside of quoted texts; None becomes an error."""

    def changed(found: re.Match[str]) -> str:
        area = read_area(found[0])
        new = change(area)
        return found[0] if new == area else "#REF!" if new is None else str(new)

    parts: Sequence[str] = _TEXTS.split(text)
    return "".join(
        part if part.startswith('"') else _IN_FORMULA.sub(changed, part) for part in parts
    )


def _end(text: str) -> End:
    found = _END.fullmatch(text)
    assert found is not None
    fixed_column, column, fixed_row, row = found.groups()
    return End(
        fixed_column=bool(fixed_column),
        column=None if column is None else column_number(column),
        fixed_row=bool(fixed_row),
        row=None if row is None else int(row),
    )


def _span(places: Sequence[int | None], size: int) -> tuple[int, int]:
    known = [place for place in places if place is not None]
    if not known:
        return 1, size
    if len(known) < len(places):  # A2:A ends with the sheet
        return known[0], size
    return min(known), max(known)


def _quoted(sheet: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", sheet)
    return sheet if plain else "'" + sheet.replace("'", "''") + "'"
