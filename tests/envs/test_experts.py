"""Turns of experts enter as valid text; an expert that raises is one line."""

import dataclasses

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.envs import experts
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.envs.maze import Maze
from agentrm_jax.envs.pddl.family import Pddl
from agentrm_jax.envs.pool import EnvPool


def trajectories(monkeypatch, demonstrate):
    family = type("Changed", (Maze,), {"demonstrate": demonstrate})()
    monkeypatch.setattr(experts, "load_family", lambda name: family)
    tasks = family.tasks("test", kinds=family.kinds(), n=2)
    return list(expert_trajectories(EnvPool(workers=0), tasks))


def test_thoughts_of_half_characters_are_valid_text(monkeypatch):
    def demonstrate(self, task):
        turns = Maze.demonstrate(self, task) or []
        return [Demonstration(thought="\ud83d\ude00\ud83d", action=t.action) for t in turns]

    found = trajectories(monkeypatch, demonstrate)
    assert len(found) == 2
    first = found[0].steps[0]
    assert first.reply == f"Thought: \U0001f600\ufffd\nAction: {first.action}"


@pytest.mark.parametrize(
    ("demonstrate", "message"),
    [
        (lambda self, task: 1 / 0, "demonstrate: ZeroDivisionError: division by zero"),
        (lambda self, task: ["move up"], "demonstrate: AttributeError: 'str' object has no"),
        (lambda self, task: [Demonstration(thought=None, action="go")],  # type: ignore[arg-type]
         "demonstrate: TypeError: expected text, got NoneType"),
    ],
)  # fmt: skip
def test_an_expert_that_fails_is_one_line(monkeypatch, demonstrate, message):
    with pytest.raises(UserError) as raised:
        trajectories(monkeypatch, demonstrate)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_expert_that_finds_no_way_leaves_the_task_out(monkeypatch):
    assert trajectories(monkeypatch, lambda self, task: None) == []


def test_environments_that_all_fail_are_one_line_with_the_reason(monkeypatch):
    monkeypatch.setattr(Maze, "create", lambda self: None)
    with pytest.raises(UserError, match=r"no trajectory is left; the first failure: environment "):
        trajectories(monkeypatch, Maze.demonstrate)


def plans(trajectories):
    """The actions of each task that were not refused."""
    return {
        t.task.task_id: [step.action for step in t.steps if step.transition.valid]
        for t in trajectories
    }


@pytest.mark.parametrize(
    ("family", "kinds"), [(Pddl(), ["tyreworld", "gripper"]), (Maze(), Maze().kinds())]
)
def test_refused_mistakes_stay_and_others_are_undone(family, kinds):
    tasks = [
        dataclasses.replace(task, max_steps=16) for task in family.tasks("train", kinds=kinds, n=80)
    ]
    clean = list(expert_trajectories(EnvPool(workers=0), tasks))
    found = list(expert_trajectories(EnvPool(workers=0), tasks, mistakes=0.6))
    assert plans(found) == plans(clean)
    assert all(t.success and len(t.steps) <= 16 for t in found)
    assert sum(t.invalid_actions for t in clean) == 0
    assert sum(t.invalid_actions for t in found) > len(found) / 2
    again = list(expert_trajectories(EnvPool(workers=0), tasks, mistakes=0.6))
    assert again == found  # chosen by the task alone
