"""Metrics of a run: one JSON object a line, appended."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.runtime.json_files import naming, require_regular
from agentrm_jax.runtime.trackers import Tracker


class MetricWriter:
    """Appends rows `{"stage", "update", "seconds", ...}` to a file.

    Nothing is ever rewritten. A stage that is resumed appends the updates after its last checkpoint
    again; `read_metrics` takes the later ones.

    Args:
      path: Usually `metrics.jsonl` of the run. A last line torn by a kill is cut off.
      stage: Written into each row. `seconds` counts from here.
      trackers: Get each row as well.
    """

    def __init__(self, path: pathlib.Path, stage: str, trackers: Sequence[Tracker] = ()) -> None:
        self._path, self._stage, self._began = path, stage, time.monotonic()
        self._trackers = trackers
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            read_metrics(path)  # nothing is cut off a file that is not ours
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Appends one row; it is on its way to the disk when this returns."""
        seconds = round(time.monotonic() - self._began, 3)
        row = {"stage": self._stage, "update": update, "seconds": seconds, **values}
        try:
            line = json_text(row) + "\n"
        except ValueError as error:
            raise UserError(f"{self._path}: update {update} cannot be written ({error})") from None
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        for tracker in self._trackers:
            tracker.write(self._stage, update, values)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows by stage, as they first appear, and by update.

    A stage that was resumed, or begun again, wrote some updates twice: of two rows of an update the
    later one counts. A last line torn by a kill is left out; no
    file means no rows.

    Raises:
      UserError: Another line is damaged.
    """
    if not path.exists():
        return []
    require_regular(path)
    stages: dict[str, list[dict[str, Any]]] = {}
    *lines, _ = path.read_bytes().split(b"\n")  # after the last end of line comes a torn row
    for number, line in enumerate(lines, start=1):
        row = _row(path, number, line)
        own = stages.setdefault(row["stage"], [])
        while own and own[-1]["update"] >= row["update"]:
            own.pop()
        own.append(row)
    return [row for own in stages.values() for row in own]


def _row(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    if isinstance(row, dict) and isinstance(row.get("stage"), str):
        numbers = [value for key, value in row.items() if key != "stage"]
        plain = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        if plain and isinstance(row.get("update"), int) and "seconds" in row:
            return row
    raise UserError(f"{path}, line {number}: not a row of metrics; delete the line")
