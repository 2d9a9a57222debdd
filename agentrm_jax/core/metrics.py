"""Metrics of a run: one JSON object a line, appended."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError


class MetricWriter:
    """Appends rows `{"stage", "update", "seconds", ...}` to a file.

    Nothing is ever rewritten. A stage that is resumed appends the updates after its last checkpoint
    again; `read_metrics` takes the last line of each (stage, update).

    Args:
      path: Usually `metrics.jsonl` of the run. A last line torn by a kill is cut off.
      stage: Written into each row. `seconds` counts from here.
    """

    def __init__(self, path: pathlib.Path, stage: str) -> None:
        self._path, self._stage, self._began = path, stage, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Appends one row; it is on its way to the disk when this returns."""
        seconds = round(time.monotonic() - self._began, 3)
        row = {"stage": self._stage, "update": update, "seconds": seconds, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows, the last of each (stage, update), by stage as they first appear and by update.

    A last line torn by a kill is left out; no file means no rows.

    Raises:
      UserError: Another line is damaged.
    """
    if not path.exists():
        return []
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    stages: dict[str, int] = {}
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["stage"], row["update"]] = row
            stages.setdefault(row["stage"], len(stages))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not a row of metrics; delete the line"
                ) from None
    return [rows[key] for key in sorted(rows, key=lambda key: (stages[key[0]], key[1]))]
