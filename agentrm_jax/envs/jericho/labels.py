"""AgentBoard's labels for its twenty games, where the user has them: goals and sub-goals."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.data_directory import data_directory, refuse_damaged
from agentrm_jax.envs.jericho.games import GAMES

LABELS = "jericho/agentboard/test.jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """A game's goal and the texts that, once read, are sub-goals reached.

    `opening` is the first observation, or "" where the file has none.
    """

    goal: str
    subgoals: tuple[str, ...]
    opening: str


def has_labels() -> bool:
    return (data_directory() / LABELS).is_file()


def read_label(game: str) -> Label:
    """The game's label; the file's lines are in the order of the games.

    Raises:
      UserError: The file is not what it should be.
    """
    path = data_directory() / LABELS
    return _read(path, path.stat().st_mtime_ns)[GAMES.index(game)]


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> Sequence[Label]:
    refuse_damaged(path, LABELS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
    labels = [_parsed(path, i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    if len(labels) != len(GAMES):
        raise UserError(f"{path}: holds {len(labels)} labels, not one for each of {len(GAMES)} "
                        "games")  # fmt: skip
    return labels


def _parsed(path: Path, number: int, line: str) -> Label:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: not JSON: {first_line(error)}") from error
    goal = value.get("goal") if isinstance(value, dict) else None
    subgoals = value.get("subgoals") if isinstance(value, dict) else None
    if not isinstance(goal, str):
        raise UserError(f"{path}:{number}: needs `goal`, a text")
    texts = isinstance(subgoals, list) and all(isinstance(text, str) for text in subgoals)
    if not texts or not subgoals:
        raise UserError(f"{path}:{number}: needs `subgoals`, a list of texts")
    more = value.get("additional_info")
    first = more.get("init_obs") if isinstance(more, dict) else None
    return Label(goal, tuple(subgoals), first if isinstance(first, str) else "")


def next_reached(subgoals: Sequence[str], text: str) -> str | None:
    """The first of the sub-goals whose text is in an observation; signs do not count."""
    bare = _bare(text)
    return next((subgoal for subgoal in subgoals if _bare(subgoal) in bare), None)


def _bare(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9\s]", "", text)
