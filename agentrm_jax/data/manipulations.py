"""Trajectories with something wrong in them: does a reward model notice?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from agentrm_jax.core.records import Step, Trajectory

KINDS = ("invalid_actions", "other_observations", "shuffled_steps", "forged_success")
"""The manipulations, in the order in which they are shown."""
INVALID = "fold the horizon twice"
"""An action that no environment understands."""
FORGED = "The task is completed."
"""The last observation of a forged success if no trajectory of the environment succeeded."""


def manipulated(
    trajectories: Sequence[Trajectory], seed: int = 0
) -> dict[str, list[tuple[Trajectory, Trajectory]]]:
    """Returns pairs of a trajectory and its manipulated form, by the kind of manipulation.

    `invalid_actions`: every action is one that no environment understands, and the answers stay.
    `other_observations`: the answers are those of a trajectory of another task.
    `shuffled_steps`: the steps are in another order; of trajectories with two different steps.
    `forged_success`: the last answer of a failed trajectory is that of a successful one of the same
    environment, or `FORGED`.

    Args:
      trajectories: Finished trajectories; those without a step are left out.
      seed: The seed of the orders and of the other trajectories.
    """
    played = [trajectory for trajectory in trajectories if trajectory.steps]
    generator = np.random.default_rng(seed)
    success = _success_texts(played)
    pairs: dict[str, list[tuple[Trajectory, Trajectory]]] = {kind: [] for kind in KINDS}
    for trajectory in played:
        pairs["invalid_actions"].append((trajectory, _invalid(trajectory)))
        others = [t for t in played if t.task.task_id != trajectory.task.task_id]
        if others:
            donor = others[int(generator.integers(len(others)))]
            pairs["other_observations"].append((trajectory, _with_answers(trajectory, donor)))
        if (shuffled := _shuffled(trajectory, generator)) is not None:
            pairs["shuffled_steps"].append((trajectory, shuffled))
        if not trajectory.success:
            text = success.get(trajectory.task.environment, FORGED)
            pairs["forged_success"].append((trajectory, _with_last_answer(trajectory, text)))
    return pairs


def _success_texts(trajectories: Sequence[Trajectory]) -> Mapping[str, str]:
    """The last observation of the first success, by environment."""
    found: dict[str, str] = {}
    for each in trajectories:
        if each.success:
            found.setdefault(each.task.environment, each.steps[-1].transition.observation)
    return found


def _invalid(trajectory: Trajectory) -> Trajectory:
    def changed(step: Step) -> Step:
        before, found, after = step.reply.rpartition(step.action) if step.action else ("", "", "")
        reply = f"{before}{INVALID}{after}" if found else f"{step.reply}\nAction: {INVALID}"
        return dataclasses.replace(
            step, reply=reply, action=INVALID, token_ids=(), log_probs=(), stopped=None
        )

    return dataclasses.replace(trajectory, steps=tuple(map(changed, trajectory.steps)))


def _with_answers(trajectory: Trajectory, donor: Trajectory) -> Trajectory:
    texts = [step.transition.observation for step in donor.steps]
    steps = [_answered(step, texts[i % len(texts)]) for i, step in enumerate(trajectory.steps)]
    return dataclasses.replace(trajectory, steps=tuple(steps))


def _with_last_answer(trajectory: Trajectory, text: str) -> Trajectory:
    *before, last = trajectory.steps
    return dataclasses.replace(trajectory, steps=(*before, _answered(last, text)))


def _answered(step: Step, text: str) -> Step:
    transition = dataclasses.replace(step.transition, observation=text)
    return dataclasses.replace(step, transition=transition)


def _shuffled(trajectory: Trajectory, generator: np.random.Generator) -> Trajectory | None:
    """The steps in another order, None if there is no other one."""
    steps = trajectory.steps
    texts = [(step.reply, step.transition.observation) for step in steps]
    if len(set(texts)) < 2:
        return None
    while True:
        order = generator.permutation(len(steps))
        if [texts[i] for i in order] != texts:
            return dataclasses.replace(trajectory, steps=tuple(steps[i] for i in order))


def lengthened(trajectory: Trajectory, length: int) -> Trajectory:
    """Returns a trajectory of a number of steps: its own, repeated from the first or cut off.

    Args:
      trajectory: A trajectory with at least one step.
      length: The number of steps.
    """
    steps = trajectory.steps
    return dataclasses.replace(
        trajectory, steps=tuple(steps[i % len(steps)] for i in range(length))
    )
