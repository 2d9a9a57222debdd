"""Plans for to-do lists: look, change what is to be changed, answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.envs.tools.calls import Call
from agentrm_jax.envs.tools.todo_goals import TodoGoal
from agentrm_jax.envs.tools.todo_world import TodoTask, TodoWorld


class _Plan:
    """Steps and the world after them."""

    def __init__(self, world: TodoWorld) -> None:
        self.world = world
        self.steps: list[Demonstration] = []

    def do(self, thought: str, name: str, **arguments: Any) -> None:
        action = f"{name} with Action Input: {json.dumps(arguments)}"
        self.steps.append(Demonstration(thought=thought, action=action))
        _, self.world = self.world.call(Call(name, arguments))


_ASKING = {
    "get_task_duration": "I need to know how long {} takes.",
    "get_task_description": "The description of {} may say it.",
}
_CHANGING = {
    "complete_task": "{} is to be completed.",
    "delete_task": "{} is to be deleted.",
    "update_task": "{} gets another due date.",
    "update_project": "{} becomes a favourite.",
}


def generated_plan(world: TodoWorld, goal: TodoGoal) -> tuple[list[Demonstration], TodoWorld]:
    """The steps for a goal of our own, and the world that they lead to."""
    plan = _Plan(world)
    projects = list(world.projects.values())
    tasks = [world.open_tasks(project.id) for project in projects]
    if goal.needs_date:
        plan.do("I need to know what day it is.", "get_user_current_date")
    plan.do("I look up the projects.", "get_projects")
    for at in goal.look_at:
        plan.do(f"I look at the tasks of {projects[at].name}.", "get_tasks",
                project_id=projects[at].id)  # fmt: skip
    for name, (at, number) in goal.details:
        task = tasks[at][number]
        plan.do(_ASKING[name].format(task.content), name, task_id=task.id)
    for name, at, number, more in goal.changes:
        if number is None:
            thought = _CHANGING[name].format(projects[at].name)
            plan.do(thought, name, project_id=projects[at].id, **more)
        else:
            task = tasks[at][number]
            plan.do(_CHANGING[name].format(task.content), name, task_id=task.id, **more)
    plan.do(_last_thought(goal.answer), "finish", answer=goal.answer)
    return plan.steps, plan.world


def labelled_plan(
    world: TodoWorld, goal: str, state: Mapping[str, Any] | None, answer: Any
) -> list[Demonstration]:
    """Steps for a task of which the wanted end and the final answer are known.

    It looks at what the goal names, and at everything where it names nothing.
    """
    plan = _Plan(world)
    plan.do("I look up the projects.", "get_projects")
    wanted = [] if state is None else list(state["tasks"])
    changes = _differences(world, wanted)
    named = {p.id for p in world.projects.values() if p.name.lower() in goal.lower()}
    touched = {task.project for task, _ in changes}
    for project in world.projects.values():
        if project.id in (named | touched or world.projects):
            plan.do(f"I look at the tasks of {project.name}.", "get_tasks", project_id=project.id)
    for task, due in changes if state is not None else ():
        if due is None:
            gone = "delete_task" if "delete" in goal.lower() else "complete_task"
            plan.do(_CHANGING[gone].format(task.content), gone, task_id=task.id)
        else:
            plan.do(_CHANGING["update_task"].format(task.content), "update_task",
                    task_id=task.id, due_date=due)  # fmt: skip
    favourites = {p["name"]: p["is_favorite"] for p in state["projects"]} if state else {}
    for project in world.projects.values():
        if favourites.get(project.name, project.is_favorite) != project.is_favorite:
            plan.do(_CHANGING["update_project"].format(project.name), "update_project",
                    project_id=project.id, is_favorite="True")  # fmt: skip
    plan.do(_last_thought(answer), "finish", answer=answer)
    return plan.steps


def _differences(
    world: TodoWorld, wanted: Sequence[Mapping[str, Any]]
) -> list[tuple[TodoTask, str | None]]:
    """Tasks that have to change: their new due date, or None if they have to go."""
    due = {(task["content"], task["order"]): task["due_date"] for task in wanted}
    found: list[tuple[TodoTask, str | None]] = []
    for task in world.tasks.values() if wanted else ():
        new = due.get((task.content, task.order))
        if new != task.due_date:
            found.append((task, new))
    return found


def _last_thought(answer: Any) -> str:
    return "Everything is done." if answer == "done" else f"The answer is {answer}."
