"""Goals of our own on to-do lists, drawn at random, with what has to be done for each."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

_LISTS: Mapping[str, tuple[str, ...]] = {
    "Garden": ("Prune the roses", "Sow the lettuce", "Mend the fence", "Turn the compost",
               "Order seeds", "Sharpen the spade"),
    "Choir": ("Copy the scores", "Practise the alto part", "Book the hall", "Press the robes",
              "Print the programme", "Tune the piano"),
    "Moving House": ("Pack the books", "Cancel the old phone line", "Measure the hallway",
                     "Hire a van", "Label the boxes", "Hand over the keys"),
    "Bakery Stall": ("Knead the rye dough", "Buy paper bags", "Paint the price board",
                     "Bake the plum cakes", "Count the cash box"),
    "Bicycle Tour": ("Check the brakes", "Plan the first stage", "Reserve the hostel",
                     "Buy a spare tube", "Pack the panniers"),
    "Language Course": ("Learn the irregular verbs", "Write a letter", "Listen to the dialogue",
                        "Translate the poem", "Register for the exam"),
    "Workshop": ("Oil the lathe", "Sort the screws", "Glue the chair", "Sand the shelf",
                 "Sweep the floor"),
    "Reading Circle": ("Choose the next novel", "Invite the members", "Prepare questions",
                       "Return library books", "Write the minutes"),
    "Film Evening": ("Borrow the projector", "Hang up the screen", "Buy popcorn",
                     "Test the speakers"),
    "Beekeeping": ("Inspect the hives", "Melt the wax", "Fill the jars", "Repair the smoker"),
}  # fmt: skip
_PLACES = ("Town hall", "Old mill", "Cellar", "Station square", "Roof terrace", "Community centre",
           "Back yard", "Harbour office")  # fmt: skip
_TIPS = ("start early", "ask a friend to help", "take the long ladder", "bring gloves",
         "keep the receipt", "do not hurry")  # fmt: skip
_CITIES = ("Lisbon", "Bergen", "Ghent", "Trieste", "Galway", "Turku")
_FIRST_DAY = date(2017, 1, 1)

Project = Mapping[str, Any]
Place = tuple[int, int]  # numbers of a project and of a task in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class TodoGoal:
    """A goal and how it is reached.

    Attributes:
      text: The instruction that the agent reads.
      look_at: The projects whose tasks have to be seen.
      details: Tasks of which description or duration has to be asked for (the tool's name, task).
      changes: Calls that change something: tool, project and task (or None), further arguments.
      answer: The final answer.
      needs_date: Whether today's date has to be known.
    """

    text: str
    look_at: tuple[int, ...]
    details: tuple[tuple[str, Place], ...] = ()
    changes: tuple[tuple[str, int, int | None, Mapping[str, str]], ...] = ()
    answer: Any = "done"
    needs_date: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TodoDraw:
    """A to-do list, the day, the city and a goal."""

    projects: Sequence[Project]
    today: str
    city: str
    goal: TodoGoal


def draw_todo(seed: str) -> TodoDraw | None:
    """A random to-do list with a goal that fits, or None if the goal does not fit."""
    rng = random.Random(seed)
    today = _FIRST_DAY + timedelta(days=rng.randrange(3000))
    names = rng.sample(sorted(_LISTS), rng.randint(2, 4))
    projects = [_project(rng, name, today) for name in names]
    goal = rng.choice(_GOALS)(rng, projects, today)
    if goal is None:
        return None
    city = rng.choice(_CITIES)
    return TodoDraw(projects=projects, today=today.isoformat(), city=city, goal=goal)


def _project(rng: random.Random, name: str, today: date) -> Project:
    contents = rng.sample(_LISTS[name], rng.randint(2, 4))
    return {
        "name": name,
        "is_favorite": False,
        "tasks": [
            {
                "content": content,
                "description": f"- Place: {rng.choice(_PLACES)}\n- Tip: {rng.choice(_TIPS)}",
                "due_date": (today + timedelta(days=rng.randint(-6, 14))).isoformat(),
                "duration": 5 * rng.randint(2, 30),
                "duration_unit": "minute",
                "priority": rng.randint(1, 4),
            }
            for content in contents
        ],
    }


def _one(rng: random.Random, projects: Sequence[Project]) -> tuple[int, int, str]:
    """A task: its numbers, and its name with its project's."""
    at = rng.randrange(len(projects))
    number = rng.randrange(len(projects[at]["tasks"]))
    task = projects[at]["tasks"][number]
    return at, number, f'"{task["content"]}" in the project "{projects[at]["name"]}"'


def _due_of(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    return TodoGoal(
        text=f"On which date is {name} due? Answer in the form YYYY-MM-DD.",
        look_at=(at,),
        answer=projects[at]["tasks"][number]["due_date"],
    )


def _duration_of(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    return TodoGoal(
        text=f"How long does {name} take? Answer in the form number(unit).",
        look_at=(at,),
        details=(("get_task_duration", (at, number)),),
        answer=f"{projects[at]['tasks'][number]['duration']}(minute)",
    )


def _place_of(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    first = projects[at]["tasks"][number]["description"].splitlines()[0]
    return TodoGoal(
        text=f"At which place is {name} done? Answer with the place's name.",
        look_at=(at,),
        details=(("get_task_description", (at, number)),),
        answer=first.removeprefix("- Place: "),
    )


def _count(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    everything = tuple(range(len(projects)))
    return TodoGoal(
        text="How many open tasks are there in all projects together? Answer with a number.",
        look_at=everything,
        answer=sum(len(project["tasks"]) for project in projects),
    )


def _overdue(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    tasks = [task for project in projects for task in project["tasks"]]
    return TodoGoal(
        text="How many tasks were due before today? Answer with a number.",
        look_at=tuple(range(len(projects))),
        answer=sum(task["due_date"] < today.isoformat() for task in tasks),
        needs_date=True,
    )


def _earliest(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal | None:
    at = rng.randrange(len(projects))
    order = sorted(projects[at]["tasks"], key=lambda task: task["due_date"])
    if order[0]["due_date"] == order[1]["due_date"]:
        return None
    return TodoGoal(
        text=f'Which task of the project "{projects[at]["name"]}" is due first? '
        "Answer with its name.",
        look_at=(at,),
        answer=order[0]["content"],
    )


def _with_priority(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    level = rng.randint(1, 4)
    tasks = [task for project in projects for task in project["tasks"]]
    return TodoGoal(
        text=f"Which tasks in all projects have priority {level}? "
        "Answer with a list of names: ['name', ...].",
        look_at=tuple(range(len(projects))),
        answer=sorted(task["content"] for task in tasks if task["priority"] == level),
    )


def _total(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at = rng.randrange(len(projects))
    tasks = projects[at]["tasks"]
    return TodoGoal(
        text=f'How many minutes do the tasks of "{projects[at]["name"]}" take together? '
        "Answer with a number.",
        look_at=(at,),
        details=tuple(("get_task_duration", (at, number)) for number in range(len(tasks))),
        answer=sum(task["duration"] for task in tasks),
    )


def _complete(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    return TodoGoal(
        text=f"I have done {name}. Mark it as completed.",
        look_at=(at,),
        changes=(("complete_task", at, number, {}),),
    )


def _delete(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    return TodoGoal(
        text=f"Nobody needs {name} any more. Delete it.",
        look_at=(at,),
        changes=(("delete_task", at, number, {}),),
    )


def _move(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    due = (today + timedelta(days=rng.randint(15, 40))).isoformat()
    return TodoGoal(
        text=f"Set the due date of {name} to {due}.",
        look_at=(at,),
        changes=(("update_task", at, number, {"due_date": due}),),
    )


def _postpone(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, days = rng.randrange(len(projects)), rng.randint(2, 9)
    changes = []
    for number, task in enumerate(projects[at]["tasks"]):
        due = (date.fromisoformat(task["due_date"]) + timedelta(days=days)).isoformat()
        changes.append(("update_task", at, number, {"due_date": due}))
    return TodoGoal(
        text=f'Move the due date of every task in "{projects[at]["name"]}" {days} days later.',
        look_at=(at,),
        changes=tuple(changes),
    )


def _complete_level(
    rng: random.Random, projects: Sequence[Project], today: date
) -> TodoGoal | None:
    at, level = rng.randrange(len(projects)), rng.randint(1, 4)
    tasks = projects[at]["tasks"]
    chosen = [number for number, task in enumerate(tasks) if task["priority"] == level]
    if not chosen:
        return None
    return TodoGoal(
        text=f'Mark all tasks of "{projects[at]["name"]}" that have priority {level} as completed.',
        look_at=(at,),
        changes=tuple(("complete_task", at, number, {}) for number in chosen),
    )


def _favourite(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, _ = _one(rng, projects)
    name = projects[at]["tasks"][number]["content"]
    return TodoGoal(
        text=f'Make the project that holds the task "{name}" a favourite.',
        look_at=tuple(range(at + 1)),  # until it is found
        changes=(("update_project", at, None, {"is_favorite": "True"}),),
    )


def _clear(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal | None:
    overdue = [
        (at, number)
        for at, project in enumerate(projects)
        for number, task in enumerate(project["tasks"])
        if task["due_date"] < today.isoformat()
    ]
    if not 1 <= len(overdue) <= 6:
        return None
    return TodoGoal(
        text="Delete every task, in whatever project, that was due before today.",
        look_at=tuple(range(len(projects))),
        changes=tuple(("delete_task", at, number, {}) for at, number in overdue),
        needs_date=True,
    )


def _complete_and_count(rng: random.Random, projects: Sequence[Project], today: date) -> TodoGoal:
    at, number, name = _one(rng, projects)
    return TodoGoal(
        text=f"Mark {name} as completed. How many open tasks are left in that project then? "
        "Answer with a number.",
        look_at=(at,),
        changes=(("complete_task", at, number, {}),),
        answer=len(projects[at]["tasks"]) - 1,
    )


_GOALS: tuple[Callable[[random.Random, Sequence[Project], date], TodoGoal | None], ...] = (
    _due_of, _duration_of, _place_of, _count, _overdue, _earliest, _with_priority, _total,
    _complete, _delete, _move, _postpone, _complete_level, _favourite, _clear, _complete_and_count,
)  # fmt: skip
