"""Pairs of experts' actions and the same actions with one word exchanged."""

from __future__ import annotations

import dataclasses

import pytest
from conversation_cases import step, task

from agentrm_jax.core.records import Trajectory, Unanswered
from agentrm_jax.data.exchanged import exchanged_pairs, words_by_place

OBSERVATION = "You see a red key and a blue box."


def played(name: str, *actions: str) -> Trajectory:
    """A trajectory of an expert whose thoughts name what its actions name."""
    steps = tuple(
        dataclasses.replace(
            step(f"Thought: I {action} now.\nAction: {action}", f"{OBSERVATION} {action}"),
            action=action,
        )
        for action in actions
    )
    return Trajectory(
        task=dataclasses.replace(task(), task_id=name), first_observation=OBSERVATION, steps=steps
    )


EXPERTS = [
    played("a", "take red key", "go north"),
    played("b", "take blue key", "go south"),
    played("c", "take red box"),
    played("d", "take green key"),
]


def test_words_that_stand_between_the_same_words():
    words = words_by_place(EXPERTS)
    environment = task().environment
    assert words[environment, "take", "key"] == ["blue", "green", "red"]
    assert words[environment, "red", ""] == ["box", "key"]
    assert words[environment, "go", ""] == ["north", "south"]
    assert words[environment, "", "red"] == ["take"]


@pytest.mark.parametrize("seed", range(8))
def test_a_pair_differs_in_one_word_of_the_last_reply(seed):
    words = words_by_place(EXPERTS)
    pairs = exchanged_pairs(EXPERTS, words, seed)
    assert len(pairs) == len(EXPERTS)
    assert pairs == exchanged_pairs(EXPERTS, words, seed)
    for expert, (better, worse) in zip(EXPERTS, pairs, strict=True):
        number = len(better.steps)
        assert better.steps[:-1] == worse.steps[:-1] == expert.steps[: number - 1]
        right, wrong = better.steps[-1], worse.steps[-1]
        assert (right.reply, right.action) == (
            expert.steps[number - 1].reply,
            expert.steps[number - 1].action,
        )
        assert isinstance(right.transition, Unanswered)
        assert isinstance(wrong.transition, Unanswered)
        differing = [
            pair for pair in zip(right.action.split(), wrong.action.split(), strict=True)
            if pair[0] != pair[1]
        ]  # fmt: skip
        assert len(differing) == 1
        assert wrong.reply == f"Thought: I {wrong.action} now.\nAction: {wrong.action}"


def test_refused_steps_are_no_better_side():
    expert = played("a", "take red key", "take green key")
    first, last = expert.steps
    refused = dataclasses.replace(
        first, transition=dataclasses.replace(first.transition, valid=False)
    )
    expert = dataclasses.replace(expert, steps=(refused, last))
    for seed in range(8):
        [(better, _)] = exchanged_pairs([expert], words_by_place(EXPERTS), seed)
        assert better.steps[-1].action == "take green key"


def test_words_that_were_read_are_preferred():
    words = words_by_place(EXPERTS)
    found = {
        exchanged_pairs([played(str(n), "take green key")], words, 0)[0][1].steps[-1].action
        for n in range(40)
    }
    assert found == {"take red key", "take blue key"}


def test_actions_without_another_word_make_no_pair():
    experts = [played("a", "done"), played("b", "done")]
    assert exchanged_pairs(experts, words_by_place(experts), 0) == []


def test_a_choice_depends_on_its_own_task_alone():
    words = words_by_place(EXPERTS)
    whole = exchanged_pairs(EXPERTS, words, 3)
    assert exchanged_pairs(EXPERTS[2:], words, 3) == whole[2:]
