"""Metrics of a run: one JSON object a line, appended."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.trackers import Tracker


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
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Appends one row; it is on its way to the disk when this returns."""
        seconds = round(time.monotonic() - self._began, 3)
        row = {"stage": self._stage, "update": update, "seconds": seconds, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        for tracker in self._trackers:
            tracker.write(self._stage, update, values)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows by stage, as they first appear, and by update.

    A stage that was resumed, or begun anew, wrote some updates again: where an update is followed
    by an earlier or the same one, the later row counts. A last line torn by a kill is left out; no
    file means no rows.

    Raises:
      UserError: Another line is damaged.
    """
    if not path.exists():
        return []
    stages: dict[str, list[dict[str, Any]]] = {}
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            own, update = stages.setdefault(row["stage"], []), row["update"]
            while own and own[-1]["update"] >= update:
                own.pop()
            own.append(row)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not a row of metrics; delete the line"
                ) from None
    return [row for own in stages.values() for row in own]
