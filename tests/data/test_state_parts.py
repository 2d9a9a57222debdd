"""States without some of their parts, rendered for training and for scoring."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.sequences import value_sequences
from agentrm_jax.data.state_parts import PARTS, reduced_step, reduced_tree
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.search.labels import label_trajectories

STEP = Step(
    reply="Thought: The key is near.\nAction: take key",
    action="take key",
    transition=Transition(observation="You have the key.", reward=1.0, done=True, success=True),
    token_ids=(5, 6),
    log_probs=(-1.0, -1.0, -1.0),
)
TRAJECTORY = Trajectory(
    task=Task(environment="e", task_id="e/0", max_steps=3),
    first_observation="Take the key.",
    steps=(STEP,),
)
SUBSETS = [p for n in (1, 2, 3) for p in itertools.combinations(PARTS, n)]


@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_a_step_has_the_named_parts_and_its_reward(parts):
    step = reduced_step(STEP, parts)
    assert ("The key is near." in step.reply) == ("thought" in parts)
    assert ("take key" in step.reply) == ("action" in parts)
    assert (step.transition.observation == STEP.transition.observation) == ("observation" in parts)
    assert (step.action, step.transition.reward, step.transition.done) == ("take key", 1.0, True)
    sampled = {"thought", "action"} <= set(parts)
    assert step.token_ids == (STEP.token_ids if sampled else ())


def test_replies_without_an_action_or_a_label():
    def thought(reply: str, action: str) -> str:
        step = Step(reply=reply, action=action, transition=STEP.transition)
        return reduced_step(step, ("thought",)).reply

    assert thought("I do nothing.", "") == "I do nothing."
    assert thought("look around", "look around") == ""
    assert thought("Thought: take key? Yes.\nAction: take key", "take key") == (
        "Thought: take key? Yes."
    )


@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_a_state_is_scored_as_it_is_trained(parts):
    """The tokens of the last label of a training sequence end the state that is scored."""
    tokenizer = train_tokenizer([STEP.reply, STEP.transition.observation, "Take the key."], 300)
    [tree] = label_trajectories([TRAJECTORY])
    [sequence], _ = value_sequences(tokenizer, lambda task: None, [reduced_tree(tree, parts)], 256)
    renderer = Renderer(tokenizer, lambda task: None, 256, parts=parts)
    scored = np.concatenate(renderer.state(TRAJECTORY).segments)
    last = int(np.flatnonzero(sequence.weights)[-1])
    np.testing.assert_array_equal(sequence.tokens[: last + 1], scored)
