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
      split: The list that the task belongs to.
      held_out: Whether its kind is never trained on. Set by the run's config, not by the
        environment.
      problem: Canonical form of the problem (see `canonical_form`): two tasks with equal `problem`
        are the same problem, whatever seed made them. Splits are disjoint in it. Without one
        the task is a problem of its own, named after `environment` and `task_id`.
      max_steps: The episode ends, unfinished, after this many steps.
      spec: What `Environment.reset` needs, as plain JSON values.
    """

    environment: str
    task_id: str
    kind: str = "default"
    split: Split = "train"
    problem: str = ""
    max_steps: int
    spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_out: bool = False

    def __post_init__(self) -> None:
        if not self.problem:
            named = canonical_form([self.environment, self.task_id])
            object.__setattr__(self, "problem", named)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The instruction that an agent reads before a task: one for each environment.

    Attributes:
      instruction: The environment, its actions and the reply format, for a reader who has not seen
        them.
      example: Worked turns, alternately the environment's text and the agent's reply.
    """

    instruction: str
    example: tuple[str, ...] = ()


ACKNOWLEDGEMENT = "OK."
"""The agent's reply to an instruction."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """The environment's answer to one action.

    Attributes:
      observation: The text that the agent reads next.
      reward: The reward of this step. The sum over an episode, its return, lies
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
class Unanswered(Transition):
    """The place of an answer that the environment has not given: it holds nothing of an outcome."""

    observation: str = ""
    reward: float = 0.0
    done: bool = False
    success: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One exchange: a thought, an action and the observation that answers it.

    Attributes:
      reply: The policy's whole text, `Thought: ... Action: ...`.
      action: The parsed action; empty when the reply holds none.
      transition: The environment's answer; `Unanswered` in a state that ends with an action.
      token_ids: The tokens of `reply` as they were sampled, stop token excluded. Models with that
        tokenizer read these, never what the text encodes to. Empty for an expert's step.
      log_probs: Log-probability of each token under the sampling policy at temperature 1, and of
        the stop token where the policy ended the reply itself.
      stopped: Whether the policy ended the reply itself. None, and not stored: it
        follows from `log_probs`, which has a number for the stop token; some servers omit that.
    """

    reply: str
    action: str
    transition: Transition
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    stopped: bool | None = None

    @property
    def cut_off(self) -> bool:
        """Whether the reply was decoded and the policy did not end it itself."""
        if self.stopped is not None:
            return bool(self.token_ids) and not self.stopped
        return 0 < len(self.token_ids) == len(self.log_probs)

    @property
    def answered(self) -> bool:
        """Whether the environment has answered the action."""
        return not isinstance(self.transition, Unanswered)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """A task, its first observation and the steps so far; every prefix of it is a state.

    Attributes:
      task: The task.
      first_observation: The environment's first text; it states the goal.
      steps: The steps so far.
    """

    task: Task
    first_observation: str
    steps: tuple[Step, ...] = ()

    @property
    def outcome(self) -> float:
        """The return: the sum of the rewards, in [0, 1]."""
        return float(sum(step.transition.reward for step in self.steps))

    @property
    def log_prob(self) -> float:
        """The log-probability of the replies under the policy that sampled them, if it is known."""
        return float(sum(sum(step.log_probs) for step in self.steps))

    @property
    def has_log_probs(self) -> bool:
        """Whether the log-probabilities of all replies are known."""
        return all(step.log_probs for step in self.steps)

    @property
    def invalid_actions(self) -> int:
        """The number of actions that the environment did not understand or refused."""
        return sum(not step.transition.valid for step in self.steps)

    @property
    def done(self) -> bool:
        """Whether the last step ended the episode."""
        return bool(self.steps) and self.steps[-1].transition.done

    @property
    def success(self) -> bool:
        """Whether the last step solved the task."""
        return bool(self.steps) and self.steps[-1].transition.success

    def extended(self, step: Step) -> Trajectory:
        """Returns the trajectory with one more step.

        Args:
          step: The step that follows the last one.

        Returns:
          A new trajectory; this one stays as it is.
        """
        return dataclasses.replace(self, steps=(*self.steps, step))

    def without_last_answer(self) -> Trajectory:
        """Returns the state after the last action, before the environment has answered it.

        Returns:
          A trajectory whose last step is `Unanswered`; without steps the trajectory itself.
        """
        if not self.steps or not self.steps[-1].answered:
            return self
        last = dataclasses.replace(self.steps[-1], transition=Unanswered())
        return dataclasses.replace(self, steps=(*self.steps[:-1], last))

    def messages(self, prompt: Prompt | None = None) -> list[dict[str, str]]:
        """Returns the conversation in the form of chat servers, ending with the last observation.

        A state that ends with an action ends with its reply.

        Args:
          prompt: Instruction and worked example that come first; None leaves them out. If the
            example ends with the environment's text, the first observation follows it in the same
            message, after an empty line.

        Returns:
          A list of {"role": "user" or "assistant", "content": text} in which the roles alternate.
        """
        texts = [] if prompt is None else [prompt.instruction, ACKNOWLEDGEMENT, *prompt.example]
        if len(texts) % 2:
            texts[-1] += f"\n\n{self.first_observation}"
        else:
            texts.append(self.first_observation)
        for step in self.steps:
            texts.append(step.reply)
            if step.answered:
                texts.append(step.transition.observation)
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def to_json(record: Task | Transition | Step | Trajectory) -> dict[str, Any]:
    """The record as plain JSON values; `trajectory_from_json` reads a trajectory back."""
    value = dataclasses.asdict(record)
    for step in [value, *value.get("steps", ())]:
        if step.get("stopped", True) is None:
            del step["stopped"]
    return value


def task_from_json(value: Mapping[str, Any]) -> Task:
    return Task(**value)


def step_from_json(value: Mapping[str, Any]) -> Step:
    return Step(
        reply=value["reply"],
        action=value["action"],
        transition=Transition(**value["transition"]),
        token_ids=tuple(value["token_ids"]),
        log_probs=tuple(value["log_probs"]),
        stopped=value.get("stopped"),
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
