"""Questions answered with tools: weather, movies, academia (paper, held-out environments)."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.envs.data_directory import require
from agentrm_jax.envs.task_lists import check_kinds, in_turn
from agentrm_jax.envs.tools import movie_world, weather_world
from agentrm_jax.envs.tools.academia_graph import FILE, SOURCE, nets
from agentrm_jax.envs.tools.academia_world import AcademiaWorld
from agentrm_jax.envs.tools.calls import call_key
from agentrm_jax.envs.tools.episode import FINISH_HINT, Score, ToolEpisode, World
from agentrm_jax.envs.tools.labels import (
    Label,
    agentboard_labels,
    agentgym_labels,
    has_agentboard,
)
from agentrm_jax.envs.tools.movie_world import MovieWorld
from agentrm_jax.envs.tools.score import Parts
from agentrm_jax.envs.tools.weather_world import WeatherWorld

_KINDS = ("weather", "movie", "academia")
_AGENTBOARD, _PAPER_COUNT = "tool-query", 60
_MAX_STEPS = 30  # AgentBoard's own setting
_WEATHER_HINT = (
    "If you want to get the latitude and longitude information of a city, you must call "
    '"get_latitude_longitude", do not generate it by yourself which maybe wrong. '
)

_INSTRUCTION = """\
You answer a question. You are given tools that know the weather, movies, or papers and their \
authors. Use one tool in each turn, and read its answer before the next.
An action names a tool and gives it a JSON object with its parameters:
<tool> with Action Input: {"<parameter>": <value>, ...}
Ids, places and dates are found with the tools; never make one up.
When you know the answer, use the tool finish. The answer has the form that the question asks for: \
a number is written without quotes, a list as ["...", "..."].
Reply in this format:
Thought: <what you think>
Action: <one action, on one line>"""

_EXAMPLE = (
    "Goal: In which year did the paper On Counting Gulls appear? Answer with a number.\nTools:\n"
    "- loadPaperNet(): loads PaperNet: papers, linked where one cites another.\n"
    "- paperNodeCheck(node): a paper's authors, year, venue, citations, keywords.\n"
    "- finish(answer): ends with the answer.\n"
    f"{FINISH_HINT}",
    "Thought: The question is about a paper, so I need PaperNet.\n"
    "Action: loadPaperNet with Action Input: {}",
    "PaperNet is loaded.",
    "Thought: Now I can look the paper up.\n"
    'Action: paperNodeCheck with Action Input: {"node": "On Counting Gulls"}',
    "{'year': 2014, 'venue': 'Coastal Notes', 'n_citation': 3}",
    'Thought: It appeared in 2014.\nAction: finish with Action Input: {"answer": 2014}',
)


class ToolQuery:
    """Questions for AgentBoard's tools: in `test` AgentGym's tool tasks, in `paper` AgentBoard's
    list if its file is there; there is no `train`.

    The data of the tools must be there as well: recorded answers of the two web services (see
    `tools.http`), the converted graphs of `academia`.
    """

    name = "toolquery"
    pooled = False

    @property
    def metric(self) -> str:
        """AgentGym's tasks have one part each, the final answer; AgentBoard's have several."""
        return "progress rate" if has_agentboard(_AGENTBOARD) else "success rate"

    def missing(self) -> str | None:
        """Returns the reason if no kind can be played, else None."""
        reasons = [_reason(kind) for kind in _KINDS]
        return None if None in reasons else next(reason for reason in reasons if reason)

    def counts(self) -> Mapping[Split, int | None]:
        if reason := self.missing():
            raise UserError(reason)
        counts: dict[Split, int | None] = {}
        with contextlib.suppress(UserError):
            counts["test"] = len(self.tasks("test", kinds=self.kinds(), n=10_000))
        if has_agentboard(_AGENTBOARD):
            with contextlib.suppress(UserError):
                counts["paper"] = len(self.tasks("paper", kinds=self.kinds(), n=_PAPER_COUNT))
        return counts

    def kinds(self) -> Sequence[str]:
        """The kinds that can be played; all three where none can."""
        return tuple(kind for kind in _KINDS if _reason(kind) is None) or _KINDS

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn; the seed does not matter.

        Raises:
          UserError: For an unknown kind, or one whose files are missing.
        """
        check_kinds(self.name, _KINDS, kinds)
        for kind in kinds:
            if reason := _reason(kind):
                raise UserError(reason)
        if split == "train":
            return []
        make = _paper_tasks if split == "paper" else _agentgym_tasks
        return list(itertools.islice(in_turn([make(kind) for kind in kinds]), n))

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def action_key(self, action: str) -> str:
        return call_key(action)

    def create(self) -> ToolEpisode:
        return ToolEpisode(_set_up)

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """None: labels hold answers, not the ways to them."""
        return None


def _set_up(task: Task) -> tuple[World, Score, str]:
    spec = task.spec
    parts = tuple(spec["parts"])
    hint = _WEATHER_HINT if spec["tool"] == "weather" else ""
    return _world(spec), Parts(left=parts, count=len(parts)), hint + FINISH_HINT


def _world(spec: Mapping[str, Any]) -> World:
    match spec["tool"]:
        case "weather":
            return WeatherWorld(today=spec["today"], city=spec["city"])
        case "movie":
            return MovieWorld()
    return AcademiaWorld(nets())


def _reason(kind: str) -> str | None:
    """Why a kind cannot be played, in one line."""
    try:
        if not has_agentboard(_AGENTBOARD):
            agentgym_labels(kind)
        if kind == "academia":
            require(FILE, SOURCE)
            return None
        if kind == "movie":
            return movie_world.missing()
        if importlib.util.find_spec("geographiclib") is None:
            return weather_world.INSTALL
        return weather_world.SERVICE.missing()
    except UserError as error:
        return str(error)


def _agentgym_tasks(kind: str) -> Iterator[Task]:
    """AgentGym's tasks with distinct problems, those of the paper's list left out."""
    seen: set[str] = set()
    if has_agentboard(_AGENTBOARD):
        seen |= {task.problem for task in _paper_tasks(kind)}
    for number, label in enumerate(agentgym_labels(kind)):
        task = _task(kind, label, "test", f"agentgym-{label.get('id', number)}")
        if task.problem not in seen:
            seen.add(task.problem)
            yield task


def _paper_tasks(kind: str) -> Iterator[Task]:
    for number, label in enumerate(agentboard_labels(_AGENTBOARD, _PAPER_COUNT)):
        if label["additional_info"]["tool"] == kind:
            yield _task(kind, label, "paper", str(number))


def _task(kind: str, label: Label, split: Split, name: str) -> Task:
    setting = label["additional_info"].get("init_config") or {}
    spec: dict[str, Any] = {"tool": kind, "goal": label["goal"], "parts": label["subgoals"]}
    if kind == "weather":
        spec["today"] = setting["current_date"]
        spec["city"] = setting["current_location"]
    form = {"tool": kind, "goal": label["goal"], "setting": setting}
    return Task(
        environment=ToolQuery.name,
        task_id=f"{ToolQuery.name}/{kind}/{name}",
        kind=kind,
        split=split,
        problem=canonical_form(form),
        max_steps=_MAX_STEPS,
        spec=spec,
    )
