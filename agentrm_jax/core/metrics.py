"""Metrics of a run: one JSON object a line, appended."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError


class MetricWriter:
    """Appends to `metrics.jsonl`.

    A stage that is resumed writes the updates after its last checkpoint again; a reader takes the
    last line of each (stage, update).
    """

    def __init__(self, path: pathlib.Path, stage: str) -> None:
        self._path, self._stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # cut off a line that a kill tore
            data = path.read_bytes()
            os.truncate(path, data.rfind(b"\n") + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        row = {"stage": self._stage, "update": update, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows, the last of each (stage, update), in order of stage and update.

    A last line torn by a kill is left out.

    Raises:
      UserError: Another line is damaged.
    """
    if not path.exists():
        return []
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["stage"], row["update"]] = row
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a row of metrics") from None
    stages = list(dict.fromkeys(stage for stage, _ in rows))
    return [rows[key] for key in sorted(rows, key=lambda key: (stages.index(key[0]), key[1]))]
