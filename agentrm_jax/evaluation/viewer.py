"""The data of the report's tree viewer: tasks, and their searches as bounded JSON texts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrm_jax.core.records import Task
from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.evaluation.searches import Search

PAGE_CHARACTERS = 16_000_000
"""Most characters of all searches of a page."""

SEARCH_CHARACTERS = 4_000_000
"""Most characters of one search; its texts are shortened until it fits."""

TASKS_LISTED = 5_000
"""Most tasks in the list of a page."""

_TEXT_LIMITS = (4_000, 600, 80)
_STATUS = {"kept": 0, "removed": 1, "finished": 2, "failed": 3}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Viewer:
    """The tree viewer of a report.

    Attributes:
      data: The list of tasks: labels of methods, tasks with their outcomes, and the searches with
        label and size.
      searches: The JSON text of each search, in the order of `data["searches"]`.
      notes: Sentences about what the page does not hold.
    """

    data: Mapping[str, Any]
    searches: Sequence[str]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The outcome of a method on a task, for the list of tasks.

    Attributes:
      task: The task.
      label: Name of the method.
      outcome: The return, in [0, 1].
      success: The share of its trajectories that solved the task, in [0, 1].
      error: Why it ended early, or None.
    """

    task: Task
    label: str
    outcome: float
    success: float
    error: str | None = None


def episode_answer(episode: Episode, run: str = "") -> Answer:
    """Returns the answer that an episode is.

    Args:
      episode: The episode.
      run: The name of its run, if the page compares several.
    """
    return Answer(
        task=episode.task,
        label=labelled(episode.variant.label, run),
        outcome=episode.outcome,
        success=episode.success,
        error=episode.error,
    )


def tree_answer(search: Search) -> Answer:
    """Returns the answer that an exploration tree is: its mean return, and whether it was solved.

    Args:
      search: See `searches.tree_search`.
    """
    return Answer(
        task=search.task,
        label=search.label,
        outcome=search.nodes[0].value or 0.0,
        success=float(any(node.success for node in search.nodes)),
        error=search.note.partition("ended early: ")[2] or None,
    )


def labelled(label: str, run: str) -> str:
    """Returns a label with the name of its run before it, if there is one."""
    return f"{run}: {label}" if run else label


def make_viewer(
    answers: Iterable[Answer], searches: Iterable[Search], limit: int = PAGE_CHARACTERS
) -> Viewer:
    """Returns the data of the viewer.

    Args:
      answers: The outcomes of methods on tasks; a task is listed where its first one stands.
      searches: The searches to draw, the most important first: those that do not fit are left out.
      limit: Most characters of all searches.
    """
    tasks: dict[str, dict[str, Any]] = {}
    labels: dict[str, int] = {}
    left = 0
    for answer in answers:
        if answer.task.task_id not in tasks and len(tasks) == TASKS_LISTED:
            left += 1
            continue
        entry = tasks.setdefault(answer.task.task_id, _task_entry(answer.task))
        number = labels.setdefault(_short(answer.label), len(labels))
        error = None if answer.error is None else _short(answer.error)
        entry["rows"].append([number, _rounded(answer.outcome), _rounded(answer.success), error])
    blocks: list[str] = []
    heads: list[dict[str, Any]] = []
    size = dropped = shortened = 0
    for search in searches:
        text, shorter = _search_text(search)
        if size + len(text) > limit:
            dropped += 1
            continue
        size += len(text)
        shortened += shorter
        entry = tasks.setdefault(search.task.task_id, _task_entry(search.task))
        entry["goal"] = entry["goal"] or _short(search.nodes[0].observation, 400)
        entry["searches"].append(len(blocks))
        heads.append({"label": _short(search.label), "nodes": len(search.nodes),
                      "note": _short(search.note)})  # fmt: skip
        blocks.append(text)
    notes = []
    if left:
        notes.append(f"{left:,} answers are of tasks after the first {TASKS_LISTED:,}: not listed.")
    if dropped:
        notes.append(f"{dropped:,} searches are left out: the page holds {limit:,} characters.")
    if shortened:
        notes.append(f"Texts of {shortened:,} searches are shortened.")
    data = {"labels": list(labels), "tasks": list(tasks.values()), "searches": heads}
    return Viewer(data=data, searches=blocks, notes=notes)


def _task_entry(task: Task) -> dict[str, Any]:
    return {
        "id": _short(task.task_id),
        "environment": _short(task.environment),
        "goal": "",
        "rows": [],
        "searches": [],
    }


def _search_text(search: Search) -> tuple[str, bool]:
    """The JSON text of a search, and whether its texts had to be shortened."""
    text = ""
    for limit in _TEXT_LIMITS:
        text = json.dumps(_columns(search, limit), separators=(",", ":"), allow_nan=False)
        if len(text) <= SEARCH_CHARACTERS:
            return text, limit != _TEXT_LIMITS[0]
    return text, True


def _columns(search: Search, limit: int) -> dict[str, Any]:
    """The nodes as one list for each attribute; each text is stored once."""
    nodes = search.nodes
    if not nodes or any(not -1 < node.parent < i for i, node in enumerate(nodes) if i):
        raise ValueError(f"{search.label}: a parent does not stand before its children")
    texts: dict[str, int] = {}

    def index(text: str) -> int:
        return texts.setdefault(printable(admit_text(text, limit), keep="\n\t"), len(texts))

    scores = {
        _short(name): [None if s is None else _rounded(s) for s in own]
        for name, own in search.scores.items()
    }
    chosen = {_short(name): node for name, node in search.chosen.items()}
    path = [i for i, node in enumerate(nodes) if node.chosen]
    if path:
        chosen[""] = path[-1]
    columns = {
        "label": _short(search.label),
        "parent": [node.parent for node in nodes],
        "action": [index(node.action) for node in nodes],
        "reply": [index(node.reply) for node in nodes],
        "observation": [index(node.observation) for node in nodes],
        "visits": [node.visits for node in nodes],
        "value": [None if node.value is None else _rounded(node.value) for node in nodes],
        "outcome": [_rounded(node.outcome) for node in nodes],
        "flags": [node.done + 2 * node.success for node in nodes],
        "status": [_STATUS[node.status] for node in nodes],
        "scores": scores,
        "spans": {name: _span(own) for name, own in scores.items()},
        "chosen": chosen,
        "texts": list(texts),
    }
    if any(count > 1 for count in search.multiplicity):
        columns["multiplicity"] = list(search.multiplicity)
    return columns


def _span(scores: Sequence[float | None]) -> list[float]:
    """The ends of the scale on which scores are drawn: [0, 1] if all scores are in it."""
    found = [score for score in scores if score is not None]
    if all(0 <= score <= 1 for score in found):
        return [0.0, 1.0]
    return [min(found), max(found)]


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _short(text: str, limit: int = 300) -> str:
    return printable(admit_text(text, limit), keep="\n\t")
