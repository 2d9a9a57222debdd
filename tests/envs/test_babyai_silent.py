"""BabyAI whose end tells nothing, next to BabyAI itself."""

from __future__ import annotations

import dataclasses
import random

import pytest

pytest.importorskip("minigrid")

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.babyai.family import BabyAI
from agentrm_jax.envs.babyai.text import look, options
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.config import EnvironmentConfig

KINDS = ("GoToObjDoor", "PickupDist", "OpenDoor", "ActionObjDoor", "GoToLocal", "PickupLoc")
SILENT = load_family("babyai@silent")
LOUD = BabyAI()


def tasks(n, max_steps=8):
    found = SILENT.tasks("train", kinds=KINDS, n=n)
    return [dataclasses.replace(task, max_steps=max_steps) for task in found]


def loud(task):
    return dataclasses.replace(task, environment="babyai")


def test_tasks_are_those_of_babyai():
    own, other = SILENT.tasks("test", kinds=KINDS, n=24), LOUD.tasks("test", kinds=KINDS, n=24)
    assert [task.problem for task in own] == [task.problem for task in other]
    assert all(task.task_id.startswith("babyai@silent/") for task in own)


@pytest.mark.parametrize("seed", range(20))
def test_random_actions_reach_the_goal_where_they_do_in_babyai(seed):
    """Both are told the same random actions; texts are equal until the goal is reached."""
    task, rng = tasks(20)[seed], random.Random(seed)
    silent, other = SILENT.create(), LOUD.create()
    assert silent.reset(task) == other.reset(loud(task))
    reached, paid = False, 0.0
    for step in range(task.max_steps):
        names = list(options(silent.world, look(silent.world)).available)
        action = rng.choice(names)
        answer = silent.step(action)
        assert "completed" not in answer.observation
        assert answer.done == (step == task.max_steps - 1)
        if not reached:
            heard = other.step(action)
            reached = heard.success
            if not reached:
                assert heard.observation == answer.observation
        paid += answer.reward
    assert paid == float(reached)


def test_the_agent_ends_an_episode_and_is_paid_then():
    for task in tasks(12):
        turns = SILENT.demonstrate(task)
        if turns is None:  # the expert needs more steps
            continue
        episode = SILENT.create()
        episode.reset(task)
        answers = [episode.step(turn.action) for turn in turns]
        assert [answer.done for answer in answers] == [False] * (len(turns) - 1) + [True]
        assert answers[-1].success
        assert sum(answer.reward for answer in answers) == 1.0
        early = SILENT.create()
        early.reset(task)
        given_up = early.step("Done")
        assert given_up.done
        assert given_up.reward == 0.0
        assert given_up.observation == answers[-1].observation


def test_a_copy_keeps_what_was_reached():
    task = tasks(2)[1]
    turns, episode = SILENT.demonstrate(task), SILENT.create()
    episode.reset(task)
    before = episode.fork()
    for turn in turns[:-1]:
        episode.step(turn.action)
    assert episode.fork().step("done").success
    assert not before.step("done").success


def test_an_expert_without_time_for_done_fails():
    task = tasks(2)[1]
    needed = len(SILENT.demonstrate(task))
    assert SILENT.demonstrate(dataclasses.replace(task, max_steps=needed - 1)) is None


def test_the_prompt_names_the_action():
    assert "done: ends the episode" in SILENT.prompt().instruction


def test_a_wording_of_it():
    family = load_family("babyai@silent@grab")
    [task] = family.tasks("test", kinds=["PickupDist"], n=1)
    assert task.environment == "babyai@silent@grab"
    turns, episode = family.demonstrate(task), family.create()
    episode.reset(task)
    answers = [episode.step(turn.action) for turn in turns]
    assert answers[-1].success
    assert any(turn.action.startswith("grab ") for turn in turns)
    assert "done: ends the episode" in family.prompt().instruction


def test_configuration():
    assert EnvironmentConfig(name="babyai", reveal=False).registered == "babyai@silent"
    both = EnvironmentConfig(name="babyai", wording="grab", reveal=False).registered
    assert both == "babyai@silent@grab"
    with pytest.raises(UserError, match="'maze': has no form with reveal: false"):
        load_family("maze@silent")
