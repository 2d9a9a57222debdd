"""The problems that a reward model was trained on: a file that travels with the model."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line
from agentrm_jax.runtime.manifests import check_manifest

FILE = "trained_on.json"


def write_trained_on(folder: pathlib.Path, problems: Collection[str] | None) -> None:
    """Writes canonical problems (`core.records.Task.problem`) next to a model; nothing for None."""
    if problems is not None:
        text = json.dumps({"problems": sorted(problems)}, indent=1)
        (folder / FILE).write_text(text, encoding="utf-8")


def read_trained_on(folder: pathlib.Path) -> frozenset[str] | None:
    """Returns the canonical problems that the model in a folder was trained on; None if not known.

    Raises:
      UserError: The file was lost or changed since the model was saved.
    """
    check_manifest(folder, only=FILE)
    path = folder / FILE
    try:
        problems = parse_json(path.read_bytes())["problems"]
        if not all(isinstance(problem, str) for problem in problems):
            raise TypeError("problems: not a list of strings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); restore the file") from None
    return frozenset(problems)
