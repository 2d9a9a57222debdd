"""Files with tool tasks that others made: AgentGym's and, where the user has them, AgentBoard's."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.data_directory import data_directory, require

_AGENTGYM = "https://github.com/WooooDyy/AgentGym (agentenv-tool/Toolusage/data)"
_AGENTBOARD = "https://huggingface.co/datasets/hkust-nlp/agentboard (data/{name})"
_NEEDED = ("goal", "subgoals", "additional_info")

Label = Mapping[str, Any]


def agentgym_labels(kind: str) -> Sequence[Label]:
    """AgentGym's tasks of a tool, in the file's order.

    Raises:
      UserError: The file is missing or broken.
    """
    return _read(require(f"tool/{kind}.jsonl", _AGENTGYM))


def agentboard_file(name: str) -> str:
    """Returns the path of AgentBoard's tasks (`tool-query` or `tool-operation`) in the data."""
    return f"tool/agentboard/{name}/test.jsonl"


def has_agentboard(name: str) -> bool:
    return (data_directory() / agentboard_file(name)).is_file()


def agentboard_labels(name: str, count: int) -> Sequence[Label]:
    """AgentBoard's tasks, the paper's list.

    Raises:
      UserError: The file is missing or broken.
    """
    source = _AGENTBOARD.format(name=name)
    path = require(agentboard_file(name), source)
    labels = _read(path)
    if len(labels) != count:
        raise UserError(f"{path}: holds {len(labels)} tasks, not {count}; get it from {source}")
    return labels


def _read(path: Path) -> Sequence[Label]:
    return _parsed(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _parsed(path: Path, _changed: int) -> Sequence[Label]:
    labels = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label = parse_json(line)
            if not all(key in label for key in _NEEDED):
                raise ValueError(f"needs {', '.join(_NEEDED)}")
            if not {"tool", "answer"} <= set(label["additional_info"]):
                raise ValueError("needs a tool and an answer")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a tool task: {first_line(error)}") from None
        labels.append(label)
    return tuple(labels)
