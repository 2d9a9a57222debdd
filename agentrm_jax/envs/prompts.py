"""Prompts that a user brings, in the files of the paper's authors.

    DIR/instructions/NAME_inst.txt      what the environment is, the actions, the reply format
    DIR/icl_examples/NAME_icl.json      worked examples, each a list of {"role", "content"}; the
                                        first one is shown

NAME is the environment's name or that of the authors (`sciworld`, `tool`); files for one kind
alone, `NAME_KIND_inst.txt`, come first.
"""

from __future__ import annotations

import json
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.text import admit_text, first_line

_AUTHORS_NAMES = {"scienceworld": "sciworld", "toolquery": "tool", "tooloperation": "tool"}


def read_prompt(directory: Path, environment: str, kind: str) -> Prompt:
    """The prompt for tasks of a kind.

    Raises:
      UserError: A file is missing, or an example is not what it should be.
    """
    names = [environment, *filter(None, [_AUTHORS_NAMES.get(environment)])]
    stems = [*(f"{name}_{kind}" for name in names), *names]
    instruction = _first(directory / "instructions", [f"{stem}_inst.txt" for stem in stems])
    example = _first(directory / "icl_examples", [f"{stem}_icl.json" for stem in stems])
    return Prompt(instruction=_text(instruction).strip(), example=_turns(example))


def _first(folder: Path, names: list[str]) -> Path:
    for name in names:
        if (path := folder / name).is_file():
            return path
    raise UserError(f"prompt_dir: {folder}: none of {', '.join(names)} is there")


def _text(path: Path) -> str:
    try:
        return admit_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


def _turns(path: Path) -> tuple[str, ...]:
    """The first example: alternately the environment's text and the agent's reply."""
    try:
        examples = parse_json(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(examples, list) or not examples or not isinstance(examples[0], list):
        raise UserError(f"{path}: must be a list of examples, each a list of turns")
    turns: list[str] = []
    for number, turn in enumerate(examples[0]):
        role = "assistant" if number % 2 else "user"
        if not isinstance(turn, dict) or turn.get("role") != role:
            raise UserError(f"{path}: example 0, turn {number}: `role` must be {role!r}")
        if not isinstance(turn.get("content"), str):
            raise UserError(f"{path}: example 0, turn {number}: `content` must be a text")
        turns.append(admit_text(turn["content"]).removeprefix("Observation: ").strip())
    return tuple(turns)
