"""A to-do list that answers as Todoist does through AgentBoard's tools."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from agentrm_jax.envs.tools.calls import Call, Tool, ToolError
from agentrm_jax.envs.tools.episode import Result
from agentrm_jax.envs.tools.final import final

TOOLS = (
    Tool("get_user_current_date", (), "today's date, YYYY-MM-DD."),
    Tool("get_user_current_location", (), "the city where the user is."),
    Tool("get_projects", (), "all projects with their ids."),
    Tool("update_project", ("project_id", "is_favorite"), 'is_favorite is "True" or "False".'),
    Tool("get_tasks", ("project_id",), "the open tasks of a project; priority 4 is the highest."),
    Tool("get_task_description", ("task_id",), "a task's description: place, tips and so on."),
    Tool("get_task_duration", ("task_id",), "how long a task takes, for example 30(minute)."),
    Tool("complete_task", ("task_id",), "marks a task as completed."),
    Tool("update_task", ("task_id", "due_date"), "gives a task another due date, YYYY-MM-DD."),
    Tool("delete_task", ("task_id",), "deletes a task."),
    Tool("check_valid_actions", (), "the names of all tools."),
    Tool("finish", ("answer",), "ends with the answer, or with 'done' where nothing was asked."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class TodoTask:
    """One task of a project."""

    id: str
    project: str
    order: int
    content: str
    description: str
    due_date: str
    duration: str
    priority: int
    is_completed: bool = False

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "order": self.order,
            "content": self.content,
            "is_completed": self.is_completed,
            "priority": self.priority,
            "due_date": self.due_date,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class TodoProject:
    """One project."""

    id: str
    order: int
    name: str
    is_favorite: bool = False

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "order": self.order,
            "color": "charcoal",
            "name": self.name,
            "is_favorite": self.is_favorite,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class TodoWorld:
    """Projects and tasks by id, in their order; a change makes new dictionaries."""

    projects: Mapping[str, TodoProject]
    tasks: Mapping[str, TodoTask]
    today: str
    city: str

    @property
    def tools(self) -> Sequence[Tool]:
        return TOOLS

    def call(self, call: Call) -> tuple[Result, TodoWorld]:
        given = call.arguments
        match call.name:
            case "get_user_current_date":
                return _answer(self.today), self
            case "get_user_current_location":
                return _answer(self.city), self
            case "get_projects":
                return _answer([project.shown() for project in self.projects.values()]), self
            case "update_project":
                return self._favourite(given["project_id"], given["is_favorite"])
            case "get_tasks":
                project = self._project(given["project_id"])
                return _answer([task.shown() for task in self.open_tasks(project.id)]), self
            case "get_task_description":
                task = self._task(given["task_id"], "Task not found")
                shown = {"id": task.id, "content": task.content, "description": task.description}
                return _answer(shown), self
            case "get_task_duration":
                task = self._task(given["task_id"], "Task not found")
                shown = {"id": task.id, "content": task.content, "duration": task.duration}
                return _answer(shown), self
            case "complete_task":
                task = self._task(given["task_id"])
                done = dataclasses.replace(task, is_completed=True)
                shown = {key: v for key, v in task.shown().items() if key != "is_completed"}
                answer = {"message": "Complete task successfully.", "task": shown}
                return _answer(answer), self._with(done)
            case "update_task":
                return self._due(given["task_id"], given["due_date"])
            case "delete_task":
                task = self._task(given["task_id"])
                rest = {key: other for key, other in self.tasks.items() if key != task.id}
                answer = {"message": "Delete the task successfully.", "task": task.shown()}
                return _answer(answer), dataclasses.replace(self, tasks=rest)
        return final(call, TOOLS), self

    def open_tasks(self, project: str) -> list[TodoTask]:
        return [t for t in self.tasks.values() if t.project == project and not t.is_completed]

    def state(self) -> dict[str, Any]:
        """Projects and open tasks without ids, as labels hold them."""
        tasks = [task for project in self.projects for task in self.open_tasks(project)]
        return {
            "projects": [_without_id(project.shown()) for project in self.projects.values()],
            "tasks": [_without_id(task.shown()) for task in tasks],
        }

    def _favourite(self, key: Any, said: Any) -> tuple[Result, TodoWorld]:
        project = self._project(key)
        choices = {"true": True, "false": False}
        if str(said).lower() not in choices:
            raise ToolError("Value of is_favorite is not a boolean")
        changed = dataclasses.replace(project, is_favorite=choices[str(said).lower()])
        answer = {"message": "Update the project successfully.", "project": changed.shown()}
        projects = {**self.projects, project.id: changed}
        return _answer(answer), dataclasses.replace(self, projects=projects)

    def _due(self, key: Any, due_date: Any) -> tuple[Result, TodoWorld]:
        task = self._task(key, "Task not found")
        try:
            due = date.fromisoformat(due_date).isoformat()
        except (TypeError, ValueError):
            raise ToolError("Date is invalid") from None
        changed = dataclasses.replace(task, due_date=due)
        answer = {"message": "Update the task successfully", "task": changed.shown()}
        return _answer(answer), self._with(changed)

    def _with(self, task: TodoTask) -> TodoWorld:
        return dataclasses.replace(self, tasks={**self.tasks, task.id: task})

    def _project(self, key: Any) -> TodoProject:
        if str(key) not in self.projects:
            raise ToolError("Project not found")
        return self.projects[str(key)]

    def _task(self, key: Any, otherwise: str = "") -> TodoTask:
        if str(key) not in self.tasks:
            raise ToolError(otherwise or f"Task {key} is not exists.")  # AgentBoard's words
        return self.tasks[str(key)]


def todo_world(
    projects: Sequence[Mapping[str, Any]], today: str, city: str, seed: str
) -> TodoWorld:
    """A to-do list from projects as AgentBoard's file holds them.

    Ids are drawn from the seed: those of one task are of no use in another.
    """
    rng = random.Random(f"todo/{seed}")
    last = rng.randrange(2_000_000_000, 7_000_000_000)
    found: dict[str, TodoProject] = {}
    tasks: dict[str, TodoTask] = {}

    def following() -> str:
        nonlocal last
        last += rng.randrange(1, 1000)
        return str(last)

    for order, project in enumerate(projects, start=1):
        key = following()
        found[key] = TodoProject(id=key, order=order, name=project["name"])
        for number, task in enumerate(project["tasks"], start=1):
            own = following()
            tasks[own] = TodoTask(
                id=own,
                project=key,
                order=number,
                content=task["content"],
                description=task["description"],
                due_date=task["due_date"],
                duration=f"{task['duration']}({task['duration_unit']})",
                priority=task["priority"],
            )
    return TodoWorld(projects=found, tasks=tasks, today=today, city=city)


def _answer(value: Any) -> Result:
    """AgentBoard's parts of a goal are answers without ids."""
    return Result(value, reached=_without_ids(value))


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_id(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _without_id(item) if isinstance(item, dict) else item
            for key, item in _without_id(value).items()
        }
    return value


def _without_id(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "id"}
