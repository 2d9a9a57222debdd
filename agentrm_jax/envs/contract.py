"""The contract of environments (`core.protocols.Environment`), checked when their answers enter.

Texts pass `core.text.admit_text` here and nowhere else. A breach is the environment author's
mistake: it raises `ContractError`, of which the pool makes an `EnvironmentFailure` for the episode.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Environment, EnvironmentFamily, Prompt
from agentrm_jax.core.records import Split, Task, Transition
from agentrm_jax.core.text import admit_text, first_line, message_of, printable

RETURN_TOLERANCE = 1e-6
"""How far rounding may carry a return out of [0, 1]."""

MOST_STEPS = 100_000
"""Steps of an episode: a search reserves nodes for all of them."""


class ContractError(Exception):
    """An environment broke its contract; the message is one line that says how."""


@dataclasses.dataclass(eq=False, slots=True)
class Episode:
    """One running episode, with what the contract is checked by.

    Attributes:
      environment: The user's object.
      task: The task that it was reset to.
      steps: How many actions were performed.
      total: The sum of the rewards so far.
      done: Whether the last transition ended the episode.
    """

    environment: Environment
    task: Task
    steps: int = 0
    total: float = 0.0
    done: bool = False

    def step(self, action: str) -> Transition:
        """Performs an action; the transition has plain types, valid text and a checked return.

        The transition is `done` after `max_steps` steps, even if the environment does not say so.

        Raises:
          ContractError: The answer breaks the contract, or the episode is over.
        """
        if self.done:
            raise ContractError(f"an action after step {self.steps}, which ended the episode")
        number = self.steps + 1
        try:
            answer = _plain_transition(self.environment.step(admit_text(action)))
            total = _added(self.total, answer.reward)
        except ContractError as error:
            raise ContractError(f"step {number}: {error}") from None
        if number >= self.task.max_steps and not answer.done:
            answer = dataclasses.replace(answer, done=True)
        self.steps, self.total, self.done = number, total, answer.done
        return answer

    def fork(self) -> Episode:
        """An episode in the same state, whose environment is another object.

        Raises:
          ContractError: There is no `fork`, or it returned the environment itself, or no
            environment.
        """
        if not hasattr(self.environment, "fork"):
            raise ContractError(
                f"{type(self.environment).__name__} has no method fork; write one that returns "
                "copy.deepcopy(self), or let create() return an episode of agentrm_jax.envs.replay"
            )
        copy = self.environment.fork()
        if copy is self.environment:
            raise ContractError("fork must return a copy (got the environment itself)")
        if not (hasattr(copy, "step") and hasattr(copy, "fork")):
            raise ContractError(f"fork must return an environment (got {_kind(copy)})")
        return dataclasses.replace(self, environment=copy)


def reset(environment: Environment, task: Task) -> tuple[Episode, str]:
    """Starts an episode: the episode and the first observation.

    Raises:
      ContractError: `reset` did not return text.
    """
    own = dataclasses.replace(task, spec=copy.deepcopy(task.spec))  # it may change its own
    text = _plain(environment.reset(own))
    if not isinstance(text, str):
        raise ContractError(f"reset must return a str (got {_kind(text)})")
    return Episode(environment, task), admit_text(text)


@contextlib.contextmanager
def blaming(where: str) -> Iterator[None]:
    """Makes one `UserError` of whatever foreign code raises in the body, an exit included.

    Args:
      where: The beginning of the message: which environment, which method, which task.

    Raises:
      UserError: The body raised something; its own `UserError` stays as it is.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        said = str(error) if isinstance(error, ContractError) else reason_of(error)
        raise UserError(f"{where}: {said}") from error


def missing_of(family: EnvironmentFamily) -> str:
    """Returns what an environment lacks, one printable line; empty if it lacks nothing.

    Raises:
      UserError: `missing` raises, or returns neither None nor text.
    """
    with blaming(f"environment {family.name!r}: missing"):
        reason = family.missing()
        return "" if reason is None else printable(admit_text(reason))


def kinds_of(family: EnvironmentFamily) -> tuple[str, ...]:
    """Returns the kinds of an environment.

    Raises:
      UserError: `kinds` raises, or returns no list of texts.
    """
    with blaming(f"environment {family.name!r}: kinds"):
        kinds = family.kinds()
        if not isinstance(kinds, Sequence) or isinstance(kinds, str):
            raise ContractError(f"must return a list of texts (got {_kind(kinds)})")
        return tuple(map(admit_text, kinds))


def listed_tasks(
    family: EnvironmentFamily,
    split: Split,
    *,
    n: int,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Task]:
    """Returns an environment's list of tasks with valid texts; see `EnvironmentFamily.tasks`.

    Args:
      kinds: None: all of them.

    Raises:
      UserError: `tasks` raises, or returns what `admit_tasks` refuses.
    """
    wanted = kinds_of(family) if kinds is None else kinds
    with blaming(f"environment {family.name!r}: tasks"):
        listed = family.tasks(split, kinds=wanted, n=n, seed=seed)
        return admit_tasks(family.name, listed)


def admit_tasks(environment: str, tasks: Any) -> list[Task]:
    """Returns a family's list of tasks with valid texts.

    Raises:
      UserError: It is no list of tasks of this environment, `max_steps` is no positive integer,
        `spec` is not JSON, or two tasks have one `task_id`.
    """
    where = f"environment {environment!r}: tasks"
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise UserError(f"{where} must return a list (got {_kind(tasks)})")
    admitted, names = [], set()
    for task in tasks:
        if not isinstance(task, Task):
            raise UserError(f"{where} must return Task records (got {_kind(task)})")
        try:
            admitted.append(_admitted_task(task, environment))
        except (ContractError, TypeError) as error:
            raise UserError(f"{where}: task {task.task_id!r}: {first_line(error)}") from None
        if admitted[-1].task_id in names:
            raise UserError(f"{where}: task_id {task.task_id!r} is there twice")
        names.add(admitted[-1].task_id)
    return admitted


def admit_prompt(prompt: Any) -> Prompt:
    """Returns a prompt with valid texts.

    Raises:
      ContractError: It is no `Prompt` of texts.
    """
    if not isinstance(prompt, Prompt):
        raise ContractError(f"prompt must return a Prompt (got {_kind(prompt)})")
    example = prompt.example
    if not isinstance(example, Sequence) or isinstance(example, str):
        raise ContractError(f"prompt: example must be a tuple of texts (got {_kind(example)})")
    if not all(isinstance(text, str) for text in (prompt.instruction, *example)):
        raise ContractError("prompt: instruction and example must be texts")
    return Prompt(
        instruction=admit_text(prompt.instruction), example=tuple(map(admit_text, example))
    )


def reason_of(error: BaseException, limit: int = 500) -> str:
    """Returns an exception as one printable line: its type and its text."""
    said = f"{type(error).__name__}: {message_of(error)}"
    return printable(" ".join(said.split()))[:limit]


def _admitted_task(task: Task, environment: str) -> Task:
    if task.environment != environment:
        raise ContractError(f"environment must be {environment!r} (got {task.environment!r})")
    steps = _plain(task.max_steps)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
        raise ContractError(
            f"max_steps must be an integer from 1 to {MOST_STEPS} (got {repr(steps)[:40]})"
        )
    if task.split not in ("train", "test", "paper"):
        raise ContractError(f"split must be one of train, test, paper (got {task.split!r})")
    try:
        spec = json.loads(json.dumps(task.spec, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ContractError(f"spec must hold plain JSON values: {first_line(error)}") from None
    if spec != task.spec:
        raise ContractError("spec must hold plain JSON values: lists, not tuples; keys are texts")
    return dataclasses.replace(
        task,
        task_id=admit_text(task.task_id),
        kind=admit_text(task.kind),
        problem=admit_text(task.problem),
        max_steps=steps,
    )


def _plain_transition(answer: Any) -> Transition:
    if not isinstance(answer, Transition):
        raise ContractError(f"step must return a Transition (got {_kind(answer)})")
    observation = _plain(answer.observation)
    if not isinstance(observation, str):
        raise ContractError(f"observation must be a str (got {_kind(observation)})")
    reward = _plain(answer.reward)
    if not isinstance(reward, numbers.Real):
        raise ContractError(f"reward must be a number (got {_kind(reward)})")
    flags = {name: _plain(getattr(answer, name)) for name in ("done", "success", "valid")}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ContractError(f"{name} must be True or False (got {printable(repr(flag)[:40])})")
    return Transition(observation=admit_text(observation), reward=_finite(reward), **flags)


def _finite(reward: numbers.Real) -> float:
    try:
        value = float(reward)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ContractError(f"reward must be a finite number (got {value})")
    return value


def _added(total: float, reward: float) -> float:
    """The sum of the rewards, which has to stay in [0, 1]: it may become a label at any step."""
    after = total + reward
    if not -RETURN_TOLERANCE <= after <= 1 + RETURN_TOLERANCE:
        raise ContractError(
            f"the sum of the rewards must stay within 0 and 1 (got {after:g}, of it {reward:g} now)"
        )
    return after


def _plain(value: Any) -> Any:
    """Returns a NumPy scalar as Python's own value, and anything else unchanged."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    return value


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
