"""The record of a run's servers, in the run's folder."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown
from agentrm_jax.runtime.json_files import read_record, write_json_atomic
from agentrm_jax.runtime.processes import is_first
from agentrm_jax.runtime.run_paths import RunPaths


def record_server(directory: pathlib.Path, name: str, url: str, facts: Any) -> None:
    """Adds what a server was seen to do to the records of a run, unless it is there already.

    Args:
      directory: The folder of the run.
      name: `agent`, `judge`, or the name of a reward model.
      url: Address of the server.
      facts: A dataclass with `answers_as`, the name of the model in the server's answers.

    Raises:
      UserError: The run began with another model of this name, or the file is damaged.
    """
    path = RunPaths(directory).servers
    records = read_record(path) if path.exists() else {}
    own = records.get(name, [])
    if not isinstance(own, list) or not all(isinstance(each, dict) for each in own):
        raise UserError(f"{path}: {name} is no list of records; restore the file")
    entry = {"url": url, **dataclasses.asdict(facts)}
    before = own[-1].get("answers_as") if own else None
    if before and before != facts.answers_as:
        raise UserError(
            f"{url}: answers with the model {shown(facts.answers_as)}, and {name} of this run was "
            f"{shown(before)}; serve that model, or choose another --output"
        )
    entry = {key: list(each) if isinstance(each, tuple) else each for key, each in entry.items()}
    if entry not in own and is_first():
        write_json_atomic(path, {**records, name: [*own, entry]})
