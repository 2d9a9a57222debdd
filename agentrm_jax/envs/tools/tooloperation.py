"""Operations with tools: a to-do list and sheets (paper, held-out environments)."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, canonical_form, is_test_problem
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.data_directory import data_directory, refuse_damaged, require
from agentrm_jax.envs.task_lists import check_kinds, in_turn
from agentrm_jax.envs.tools import sheet_file
from agentrm_jax.envs.tools.calls import ToolError, call_key, read_call
from agentrm_jax.envs.tools.episode import FINISH_HINT, Score, ToolEpisode, World
from agentrm_jax.envs.tools.labels import (
    Label,
    agentboard_labels,
    agentgym_labels,
    has_agentboard,
)
from agentrm_jax.envs.tools.score import Parts, SheetMatch
from agentrm_jax.envs.tools.sheet_goals import draw_sheet, grid_of
from agentrm_jax.envs.tools.sheet_world import SheetWorld
from agentrm_jax.envs.tools.todo_expert import generated_plan, labelled_plan
from agentrm_jax.envs.tools.todo_goals import draw_todo
from agentrm_jax.envs.tools.todo_world import TodoWorld, todo_world

_LABELLED = ("todo", "sheet")
_GENERATED = ("todo_generated", "sheet_generated")
_AGENTBOARD, _PAPER_COUNT = "tool-operation", 40
_PROJECT_FILES = {
    "tool/todo_projects.json": (
        "https://github.com/hkust-nlp/AgentBoard (agentboard/utils/todo/projects.json)"
    ),
    "tool/todo_projects_agentgym.json": (
        "https://github.com/WooooDyy/AgentGym "
        "(agentenv-tool/Toolusage/toolusage/utils/todo/projects.json)"
    ),
}
_LABELLED_STEPS = 30  # AgentBoard's own setting
_GENERATED_STEPS = 20

_INSTRUCTION = """\
You help a person with a to-do list or with a sheet of a workbook. You are given a goal and tools. \
Use one tool in each turn, and read its answer before the next.
An action names a tool and gives it a JSON object with its parameters:
<tool> with Action Input: {"<parameter>": <value>, ...}
Positions of cells are written like B3. Ids are found with the tools; never make one up.
When everything is done, or the answer is found, use the tool finish. An answer has the form that \
the goal asks for: a number is written without quotes, a list as ["...", "..."].
Reply in this format:
Thought: <what you think>
Action: <one action, on one line>"""

_EXAMPLE = (
    'Goal: Does the list "Errands" hold a task with priority 4? Answer Yes or No.\nTools:\n'
    "- get_projects(): all projects with their ids.\n"
    "- get_tasks(project_id): the open tasks of a project; priority 4 is the highest.\n"
    "- finish(answer): ends with the answer, or with 'done' where nothing was asked.\n"
    f"{FINISH_HINT}",
    "Thought: I need the id of Errands.\nAction: get_projects with Action Input: {}",
    "[{'id': '5120044871', 'order': 1, 'color': 'charcoal', 'name': 'Errands', "
    "'is_favorite': False}]",
    "Thought: Now I can look at its tasks.\n"
    'Action: get_tasks with Action Input: {"project_id": "5120044871"}',
    "[{'id': '5120045213', 'order': 1, 'content': 'Post the parcel', 'is_completed': False, "
    "'priority': 2, 'due_date': '2016-03-09'}]",
    'Thought: The only task has priority 2.\nAction: finish with Action Input: {"answer": "No"}',
)


class ToolOperation:
    """A to-do list and sheets with AgentBoard's tools.

    Kinds `todo` and `sheet` are tasks that others made: in `test` AgentGym's tool tasks, in `paper`
    AgentBoard's list if its file is there. Kinds `todo_generated` and `sheet_generated` are
    our own (`train`, `test`) and need no files.
    """

    name = "tooloperation"
    pooled = False
    metric = "progress rate"

    def missing(self) -> None:
        """Nothing: the generated kinds can always be played. `kinds` leaves out what cannot."""

    def counts(self) -> Mapping[Split, int | None]:
        counts: dict[Split, int | None] = {"train": None, "test": None}
        if has_agentboard(_AGENTBOARD):
            with contextlib.suppress(UserError):
                counts["paper"] = len(self.tasks("paper", kinds=self.kinds(), n=_PAPER_COUNT))
        return counts

    def kinds(self) -> Sequence[str]:
        """The kinds whose files are there, the generated ones last."""
        return (*(kind for kind in _LABELLED if _reason(kind) is None), *_GENERATED)

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn.

        Raises:
          UserError: For an unknown kind, or where a file or package that it needs is missing.
        """
        check_kinds(self.name, (*_LABELLED, *_GENERATED), kinds)
        streams: list[Iterator[Task]] = []
        for kind in kinds:
            if kind in _GENERATED:
                if split != "paper":
                    streams.append(_generated_tasks(kind, split, seed))
            elif split == "paper":
                streams.append(_paper_tasks(kind))
            elif reason := _reason(kind):
                raise UserError(reason)
            elif split == "test":
                streams.append(_agentgym_tasks(kind))
        return list(itertools.islice(in_turn(streams), n))

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def action_key(self, action: str) -> str:
        return call_key(action)

    def create(self) -> ToolEpisode:
        return ToolEpisode(_set_up)

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """The steps that a generated goal was made with; for others the reference actions of a
        sheet's label, or the way to the state and answer of a to-do list's label."""
        spec = task.spec
        if "steps" in spec:
            return [Demonstration(thought=thought, action=act) for thought, act in spec["steps"]]
        if spec["tool"] == "sheet":
            return _reference_steps(spec["reference"])
        if not spec["only_success"] and len(spec["parts"]) > 1:
            return None  # AgentBoard's parts say what is seen, not what is done
        steps = labelled_plan(_todo(spec), spec["goal"], spec["state"], spec["parts"][-1])
        return steps if len(steps) <= task.max_steps else None


def _set_up(task: Task) -> tuple[World, Score, str]:
    spec = task.spec
    if spec["tool"] == "todo":
        parts = tuple(spec["parts"])
        score = Parts(
            left=parts,
            count=len(parts),
            state=spec["state"],
            state_of=None if spec["state"] is None else TodoWorld.state,
            only_success=spec["only_success"],
        )
        return _todo(spec), score, FINISH_HINT
    world = _sheets(spec)
    own = spec["sheet"]
    match = SheetMatch(answer=spec["answer"], shown=SheetWorld.values, whole="cells" in spec)
    text = f"{FINISH_HINT}\nYou are now in {own}\n{world.values()}"
    return world, match, text


def _todo(spec: Mapping[str, Any]) -> TodoWorld:
    return todo_world(spec["projects"], spec["today"], spec["city"], spec["seed"])


def _sheets(spec: Mapping[str, Any]) -> SheetWorld:
    if "cells" in spec:
        grid = grid_of(spec["cells"], spec["formats"])
        return SheetWorld({spec["sheet"]: grid}, spec["sheet"])
    return SheetWorld(sheet_file.workbook(), spec["sheet"])


def _reason(kind: str) -> str | None:
    """Why AgentGym's tasks of a kind cannot be played, in one line."""
    try:
        labels = agentgym_labels(kind)
        if kind == "todo":
            _projects_for(labels[0] if labels else None)
        else:
            require(sheet_file.FILE, sheet_file.SOURCE)
            if importlib.util.find_spec("openpyxl") is None:
                return sheet_file.INSTALL
    except UserError as error:
        return str(error)
    return None


def _projects_for(label: Label | None) -> Sequence[Mapping[str, Any]]:
    """The to-do list that a label is about: the file with the projects of its final state."""
    answer = label["additional_info"]["answer"] if label else None
    wanted = [p["name"] for p in answer["projects"]] if isinstance(answer, dict) else None
    lacking = ""
    for relative, source in _PROJECT_FILES.items():
        path = data_directory() / relative
        if not path.exists():
            lacking = f"put that of {source} there"
            continue
        try:
            refuse_damaged(path, relative)
            projects = parse_json(path.read_bytes())
            names = [project["name"] for project in projects]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise UserError(f"{path}: not a list of projects ({reason}); see {source}") from None
        if wanted is None or names == wanted:
            return projects
    last = data_directory() / list(_PROJECT_FILES)[-1]
    raise UserError(
        f"{last}: these tasks need a to-do list with the projects {', '.join(wanted or [])}; "
        f"{lacking or 'no file there has them'}"
    )


def _agentgym_tasks(kind: str) -> Iterator[Task]:
    """AgentGym's tasks with distinct problems, those of the paper's list left out."""
    seen: set[str] = set()
    if has_agentboard(_AGENTBOARD):
        seen |= {task.problem for task in _paper_tasks(kind)}
    for label in agentgym_labels(kind):
        task = _labelled_task(kind, label, "test", f"agentgym-{label.get('id', len(seen))}")
        if task.problem not in seen:
            seen.add(task.problem)
            yield task


def _paper_tasks(kind: str) -> Iterator[Task]:
    labels = agentboard_labels(_AGENTBOARD, _PAPER_COUNT)
    for number, label in enumerate(labels):
        if label["additional_info"]["tool"] == kind:
            yield _labelled_task(kind, label, "paper", str(number))


def _labelled_task(kind: str, label: Label, split: Split, name: str) -> Task:
    goal, more = label["goal"], label["additional_info"]
    if kind == "sheet":
        answer = json.loads(more["answer"])
        sheet = re.search(r'"(Sheet\d{1,2})"', goal)
        if sheet is None:
            raise UserError(f"task {name}: its goal names no sheet: {goal[:80]!r}")
        problem = canonical_form({"tool": "sheet", "goal": goal, "answer": answer})
        spec = {"tool": "sheet", "goal": goal, "sheet": sheet[1], "answer": answer}
        spec["reference"] = label["subgoals"] if isinstance(label["subgoals"], str) else ""
        return _task(kind, name, split, problem, _LABELLED_STEPS, spec)
    setting = more["init_config"]
    projects = _projects_for(label)
    # AgentGym compares the state at the end in all tasks, AgentBoard in those of type 1.
    compared = isinstance(more["answer"], dict) and (split == "test" or more["goal_type"] == 1)
    state = more["answer"] if compared else None
    form = {"tool": "todo", "goal": goal, "setting": setting, "projects": projects}
    spec = {
        "tool": "todo",
        "goal": goal,
        "projects": projects,
        "today": setting["current_date"],
        "city": setting["current_location"],
        "parts": label["subgoals"],
        "state": state,
        "only_success": split == "test",
        "seed": canonical_form(form),
    }
    return _task(kind, name, split, spec["seed"], _LABELLED_STEPS, spec)


def _generated_tasks(kind: str, split: Split, seed: int) -> Iterator[Task]:
    """Tasks of distinct problems that belong to the split, without end."""
    seen = set()
    draw = _generated_todo if kind == "todo_generated" else _generated_sheet
    for number in itertools.count():
        drawn = draw(f"{ToolOperation.name}/{kind}/{seed}/{number}")
        if drawn is None:
            continue
        problem, spec = drawn
        if problem not in seen and is_test_problem(problem) == (split == "test"):
            seen.add(problem)
            yield _task(kind, f"{seed}-{number}", split, problem, _GENERATED_STEPS, spec)


def _generated_todo(seed: str) -> tuple[str, dict[str, Any]] | None:
    drawn = draw_todo(seed)
    if drawn is None:
        return None
    text = drawn.goal.text
    problem = canonical_form([drawn.projects, drawn.today, drawn.city, text])
    world = todo_world(drawn.projects, drawn.today, drawn.city, problem)
    steps, after = generated_plan(world, drawn.goal)
    if len(steps) > _GENERATED_STEPS:
        return None
    return problem, {
        "tool": "todo",
        "goal": text,
        "projects": drawn.projects,
        "today": drawn.today,
        "city": drawn.city,
        "parts": [drawn.goal.answer],
        "state": after.state(),
        "only_success": True,
        "seed": problem,
        "steps": _plain(steps),
    }


def _generated_sheet(seed: str) -> tuple[str, dict[str, Any]] | None:
    drawn = draw_sheet(seed)
    if drawn is None or len(drawn.steps) > _GENERATED_STEPS:
        return None
    problem = canonical_form([drawn.values, drawn.formats, drawn.goal])
    return problem, {
        "tool": "sheet",
        "goal": drawn.goal,
        "sheet": "Sheet1",
        "cells": drawn.values,
        "formats": list(drawn.formats),
        "answer": drawn.answer,
        "steps": _plain(drawn.steps),
    }


def _plain(steps: Sequence[Demonstration]) -> list[list[str]]:
    return [[step.thought, step.action] for step in steps]


def _task(
    kind: str, name: str, split: Split, problem: str, max_steps: int, spec: Mapping[str, Any]
) -> Task:
    return Task(
        environment=ToolOperation.name,
        task_id=f"{ToolOperation.name}/{kind}/{name}",
        kind=kind,
        split=split,
        problem=problem,
        max_steps=max_steps,
        spec=spec,
    )


_THOUGHTS = {
    "filter_cells": "I look for the cells in question.",
    "get_note": "I read the note.",
    "get_value_by_formula": "I compute the value.",
    "delete_batch_data": "I delete what does not belong there.",
    "sort_sheet_by_col": "Now the sheet is sorted.",
    "merge_cells": "These cells become one.",
    "insert_rows": "I insert the rows.",
    "freeze_data": "The titles must stay on top.",
}


def _reference_steps(reference: str) -> list[Demonstration] | None:
    """The reference actions of a sheet's label, their arguments as values and not as texts."""
    steps = []
    for line in reference.splitlines():
        found = re.fullmatch(r"Action \d+: (\w+) with Action Input: (.*)", line.strip())
        if found is None:
            continue
        name = found[1]
        try:
            given = read_call(f"{name} with Action Input: {found[2]}").arguments
            action = f"{name} with Action Input: {_arguments(given)}"
        except (ToolError, ValueError, SyntaxError):
            return None
        steps.append(Demonstration(thought=_THOUGHTS.get(name, "I write it."), action=action))
    if not steps:
        return None
    last = Demonstration(thought="Everything is done.", action="finish with Action Input: {}")
    return [*steps, last]


def _arguments(given: Mapping[str, Any]) -> str:
    """An action's arguments; those that labels write as texts (`'[8]'`) are unpacked."""
    written = []
    for key, value in given.items():
        if key in ("values_list", "index_list", "position_list"):
            value = ast.literal_eval(value) if isinstance(value, str) else value
        elif key in ("col_num", "row_idx", "col_idx", "num", "in_column", "in_row"):
            value = int(value)
        pattern = key == "query" and str(value).startswith("re.compile(")
        text = value if pattern else json.dumps(value)
        written.append(f"{json.dumps(key)}: {text}")
    return f"{{{', '.join(written)}}}"
