"""States without some of their parts: what a reward model needs to read (paper section 4.4).

A step is a thought, an action and an observation. A model that is trained and read without one of
them shows how much it uses it. The task and the first observation always stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from agentrm_jax.core.records import Step
from agentrm_jax.data.states import LabelledTree

Part = Literal["thought", "action", "observation"]
PARTS: tuple[Part, ...] = ("thought", "action", "observation")


def reduced_step(step: Step, parts: Sequence[Part]) -> Step:
    """Returns a step with some of its parts; the environment's reward and end stay.

    The reply becomes text again: tokens that were sampled belong to the whole reply.

    Args:
      step: The step.
      parts: The parts that stay. With all of them the step itself is returned.
    """
    if set(parts) >= set(PARTS):
        return step
    transition = step.transition
    if "observation" not in parts:
        transition = dataclasses.replace(transition, observation="")
    if {"thought", "action"} <= set(parts):
        return dataclasses.replace(step, transition=transition)
    action = f"Action: {step.action}" if "action" in parts else ""
    reply = _thought(step) if "thought" in parts else action
    return dataclasses.replace(
        step, reply=reply, transition=transition, token_ids=(), log_probs=(), stopped=None
    )


def _thought(step: Step) -> str:
    """The reply up to its action, without the label of the action."""
    before, found, _ = step.reply.rpartition(step.action) if step.action else (step.reply, "", "")
    if not found:
        return step.reply
    head, label, _ = before.rpartition("Action:")
    return (head if label else before).rstrip()


def reduced_tree(tree: LabelledTree, parts: Sequence[Part]) -> LabelledTree:
    """Returns a labelled tree whose steps have some of their parts; see `reduced_step`."""
    steps = tuple(reduced_step(step, parts) for step in tree.steps)
    return dataclasses.replace(tree, steps=steps)
