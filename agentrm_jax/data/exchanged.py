"""Pairs of an expert's reply and the same reply with one word of its action exchanged."""

from __future__ import annotations

import collections
import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agentrm_jax.core.records import Step, Trajectory
from agentrm_jax.data.pairs import Pair

_WORD = re.compile(r"\w+")
_Place = tuple[str, str, str]  # environment, word before, word after; "" at the ends of an action
Words = Mapping[_Place, Sequence[str]]


def words_by_place(trajectories: Iterable[Trajectory]) -> Words:
    """Returns the words that stand between the same two words in actions of an environment.

    Args:
      trajectories: Trajectories of experts.
    """
    words: dict[_Place, set[str]] = collections.defaultdict(set)
    for trajectory in trajectories:
        for step in trajectory.steps:
            for place, match in _places(trajectory.task.environment, step.action):
                words[place].add(match.group())
    return {place: sorted(found) for place, found in words.items()}


def exchanged_pairs(trajectories: Iterable[Trajectory], words: Words, seed: int) -> list[Pair]:
    """Returns pairs of an expert's state and the state with one word of the last action exchanged.

    One step of each trajectory is chosen at random; refused steps are left out. In its reply one
    word of the action is replaced by another that stands between the same words in other actions
    (`take the KEY`), everywhere in the reply, so that thought and action agree. Words that the
    agent has just read are preferred.
    Both states end with the action, before its answer.

    Args:
      trajectories: Trajectories of experts.
      words: Words by their place, as of `words_by_place`.
      seed: Seed of the choices, which depend on nothing else than the trajectory and it.

    Returns:
      Pairs of a better and a worse state, in the order of the trajectories; none for a trajectory
      in which no word can be exchanged.
    """
    pairs = []
    for trajectory in trajectories:
        rng = np.random.default_rng([seed, zlib.crc32(trajectory.task.task_id.encode())])
        for number in rng.permutation(len(trajectory.steps)):
            steps = trajectory.steps[: number + 1]
            step, observation = steps[-1], trajectory.first_observation
            if not step.transition.valid:  # a mistake is no better than another
                continue
            if number:
                observation = steps[-2].transition.observation
            exchanged = _exchanged(trajectory.task.environment, step, observation, words, rng)
            if exchanged is not None:
                sides = (steps, (*steps[:-1], exchanged))
                pairs.append(
                    tuple(
                        dataclasses.replace(trajectory, steps=side).without_last_answer()
                        for side in sides
                    )
                )
                break
    return pairs


def _places(environment: str, action: str) -> list[tuple[_Place, re.Match[str]]]:
    """The words of an action, each with its place."""
    matches = list(_WORD.finditer(action))
    texts = ["", *(match.group() for match in matches), ""]
    return [((environment, texts[i], texts[i + 2]), match) for i, match in enumerate(matches)]


def _exchanged(
    environment: str, step: Step, observation: str, words: Words, rng: np.random.Generator
) -> Step | None:
    """The step with a word exchanged, None if no other word stands in the place of any."""
    read = set(_WORD.findall(observation))
    places = _places(environment, step.action)
    for i in rng.permutation(len(places)):
        place, match = places[i]
        others = [word for word in words[place] if word != match.group()]
        others = [word for word in others if word in read] or others
        if others:
            other = str(rng.choice(others))
            action = step.action[: match.start()] + other + step.action[match.end() :]
            head, _, _ = step.reply.rpartition(step.action)
            return dataclasses.replace(
                step,
                reply=re.sub(rf"\b{re.escape(match.group())}\b", other, head) + action,
                action=action,
                token_ids=(),
                log_probs=(),
                stopped=None,
            )
    return None
