"""The policy's likelihood as a score, against the baseline of best-of-n."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.reward.controls import FewestInvalidScorer, LikelihoodScorer
from agentrm_jax.search.choose import fewest_invalid_of_n, likeliest_of_n

TASK = Task(
    environment="toy", task_id="toy/0", kind="toy", split="test", problem="0", max_steps=9, spec={}
)


def trajectory(*log_probs: tuple[float, ...], valid: tuple[bool, ...] = ()) -> Trajectory:
    steps = [
        Step(
            reply="a",
            action="a",
            transition=Transition(
                observation="", reward=0.0, done=True, success=False, valid=bool(ok)
            ),
            token_ids=tuple(range(len(own))),
            log_probs=own,
        )
        for own, ok in zip(log_probs, valid or [True] * len(log_probs), strict=True)
    ]
    return Trajectory(task=TASK, first_observation="", steps=tuple(steps))


def test_scores_order_trajectories_as_the_baseline_does():
    rng = np.random.default_rng(0)
    for _ in range(50):
        group = [
            trajectory(*(tuple(-rng.random(rng.integers(1, 4))) for _ in range(rng.integers(1, 4))))
            for _ in range(4)
        ]
        scores = LikelihoodScorer().score([group])[0]
        assert np.argmax(scores) == np.argmax(likeliest_of_n(group))
        assert scores[0] == sum(sum(step.log_probs) for step in group[0].steps)
    assert LikelihoodScorer().cost(group) == 0


def test_fewest_invalid_actions_then_likelihood():
    rng = np.random.default_rng(1)
    for _ in range(50):
        group = [
            trajectory(
                *(tuple(-rng.random(2) * 400) for _ in range(3)), valid=tuple(rng.random(3) < 0.6)
            )
            for _ in range(4)
        ]
        [scores] = FewestInvalidScorer().score([group])
        order = sorted(range(4), key=lambda i: (group[i].invalid_actions, -group[i].log_prob))
        assert list(np.argsort(-np.array(scores), kind="stable")) == order
        assert order[0] == np.argmax(fewest_invalid_of_n(group))
    assert FewestInvalidScorer().cost(group) == 0


def test_an_action_without_an_answer_counts_as_valid():
    refused = trajectory((-1.0,), valid=(False,))
    [scores] = FewestInvalidScorer().score([[refused, refused.without_last_answer()]])
    assert scores == [-0.5, 0.5]


def test_a_step_of_unknown_likelihood_decides_nothing():
    known = trajectory((-1.0,), (-2.0,))
    unknown = dataclasses.replace(known, steps=(known.steps[0], trajectory(()).steps[0]))
    scores = LikelihoodScorer().score([[known, unknown]])[0]
    assert scores[0] == -3.0
    assert math.isnan(scores[1])
