"""Frozen records that every floor shares. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

Split = Literal["train", "test", "paper"]
"""`train`; `test`: problems never in train; `paper`: the paper's own list of test tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The specification of one episode.

    Attributes:
      environment: Registered name of the environment.
      task_id: Unique and stable over runs, for example `babyai/OpenDoor/1000017`. Random keys are
        folded from it.
      kind: Level or domain within the environment; results are also shown for each kind.
      split: Which list the task belongs to.
      held_out: Whether its kind is never trained on. Set by the run's config, not by the
        environment.
      problem: Canonical form of the problem (see `canonical_form`): two tasks with equal `problem`
        are the same problem, whatever seed made them. Splits are disjoint in it.
      max_steps: The episode ends, unfinished, after this many steps.
      spec: What `Environment.reset` needs, as plain JSON values.
    """

    environment: str
    task_id: str
    kind: str
    split: Split
    problem: str
    max_steps: int
    spec: Mapping[str, Any]
    held_out: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """The answer of an environment to one action.

    Attributes:
      observation: The text that the agent reads next.
      reward: What the environment pays for this step. The sum over an episode, its return, lies
        in [0, 1] after every step and is the task's outcome.
      done: Whether the episode is over (also when `max_steps` is reached).
      success: Whether the task is fully solved.
      valid: Whether the action was understood and possible.
    """

    observation: str
    reward: float
    done: bool
    success: bool
    valid: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One exchange: a thought, an action and the observation that answers it.

    Attributes:
      reply: The policy's whole text, `Thought: ... Action: ...`.
      action: The parsed action; empty when the reply holds none.
      transition: The environment's answer.
      token_ids: The tokens of `reply` as they were sampled, stop token excluded. Models with that
        tokenizer read these, never what the text encodes to. Empty for an expert's step.
      log_probs: Log-probability of each token under the sampling policy at temperature 1, and of
        the stop token where the policy ended the reply itself.
    """

    reply: str
    action: str
    transition: Transition
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """A task, its first observation and the steps so far; every prefix of it is a state."""

    task: Task
    first_observation: str
    steps: tuple[Step, ...] = ()

    @property
    def outcome(self) -> float:
        """The return: the sum of the rewards, in [0, 1]."""
        return float(sum(step.transition.reward for step in self.steps))

    @property
    def done(self) -> bool:
        return bool(self.steps) and self.steps[-1].transition.done

    @property
    def success(self) -> bool:
        return bool(self.steps) and self.steps[-1].transition.success

    def extended(self, step: Step) -> Trajectory:
        return dataclasses.replace(self, steps=(*self.steps, step))


def to_json(record: Task | Transition | Step | Trajectory) -> dict[str, Any]:
    """The record as plain JSON values; `trajectory_from_json` reads a trajectory back."""
    return dataclasses.asdict(record)


def task_from_json(value: Mapping[str, Any]) -> Task:
    return Task(**value)


def step_from_json(value: Mapping[str, Any]) -> Step:
    return Step(
        reply=value["reply"],
        action=value["action"],
        transition=Transition(**value["transition"]),
        token_ids=tuple(value["token_ids"]),
        log_probs=tuple(value["log_probs"]),
    )


def trajectory_from_json(value: Mapping[str, Any]) -> Trajectory:
    return Trajectory(
        task=task_from_json(value["task"]),
        first_observation=value["first_observation"],
        steps=tuple(step_from_json(step) for step in value["steps"]),
    )


def canonical_form(problem: Any) -> str:
    """A short stable name of a problem given as JSON values (sorted keys): 16 hex digits."""
    text = json.dumps(problem, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_test_problem(problem: str) -> bool:
    """Whether a generated problem belongs to `test`: one in five, decided by its canonical form.

    So train and test share no problem by construction, whatever the seeds and however many are
    drawn.
    """
    return int(problem, 16) % 5 == 0
