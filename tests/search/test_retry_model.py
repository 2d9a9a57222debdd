"""Retries of a real model: its notes are in the tokens that it reads."""

from __future__ import annotations

import dataclasses

import numpy as np

from agentrm_jax.agent.agent import Agent
from agentrm_jax.engine.engine import Engine
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.search.retry import Retry
from agentrm_jax.search.rollouts import rollouts
from agentrm_jax.testing import Guess, guess_tasks
from agentrm_jax.testing.models import (
    CONFIG,
    PROMPT,
    SAMPLING,
    SIZES,
    tiny_state,
    tokenizer,
    weights,
)


class Recording(Agent):
    """An agent that keeps the text of each request's tokens."""

    def __init__(self) -> None:
        engine = Engine(weights(0), CONFIG, dataclasses.replace(SIZES, context=512))
        super().__init__(engine, tokenizer(), lambda task: PROMPT, SAMPLING, seed=0)
        self.read: dict[tuple[str, str], str] = {}

    def request(self, trajectory, purpose):
        request, truncated = super().request(trajectory, purpose)
        tokens = [int(token) for token in np.concatenate(request.segments)]
        key = trajectory.task.task_id, purpose
        self.read[key] = " ".join(self.tokenizer.decode(tokens).split())
        return request, truncated


def test_notes_reach_the_model():
    policy, tasks = Recording(), guess_tasks(3, max_steps=2)
    with EnvPool({"guess": Guess}) as envs:
        [plain] = rollouts(policy, envs, tasks[:1])
        found = list(Retry(uses_score=False, num_attempts=2).run(policy, None, envs, tasks, 0))
    assert len(found) == 3
    notes = 0
    for rollout in found:
        task = rollout.trajectory.task
        first, note, second = rollout.search[1], rollout.search[3], rollout.search[4]
        assert first.observation == second.observation == "Say: guess <number>"
        question = policy.read[task.task_id, "reflect/0"]
        assert "What went wrong in this attempt" in question
        assert " ".join(first.reply.split()) in question
        if note.action == note.observation == "" and note.reply:
            notes += 1
            assert note.reply in policy.read[task.task_id, "sample/1/0"]
            assert note.reply in policy.read[task.task_id, "sample/1/1"]
        assert rollout.trajectory.first_observation == "Guess a number from 1 to 30."
        assert rollout.trajectory.steps[0].reply == second.reply
        if task == tasks[0]:  # the first attempt is the first trajectory of best-of-n
            assert [n.reply for n in rollout.search[1:3]] == [
                s.reply for s in plain.trajectory.steps
            ]
    assert notes == 3
    assert policy.fits(tiny_state(0, 2))
    assert not policy.fits(tiny_state(0, 60))
