"""A table of running episodes, as each place that runs environments keeps one.

The same table serves the main process and a worker; between the two, requests and answers travel
as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, Transition, task_from_json, to_json
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs import contract
from agentrm_jax.envs.given import Families


@dataclasses.dataclass(frozen=True, slots=True)
class Reset:
    """Start an episode of the task under this handle."""

    handle: int
    task: Task


@dataclasses.dataclass(frozen=True, slots=True)
class Act:
    """Act in the episode: in place if `into` is its own handle, else in a fork named `into`."""

    handle: int
    action: str
    into: int


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """The environment did not answer properly.

    Attributes:
      reason: One line.
      mendable: The environment said, by a `UserError`, that the user has to mend something.
    """

    reason: str
    mendable: bool = False


Request = Reset | Act
Answer = str | Transition | Fault
"""The first observation, the transition of an action, or the fault in their place."""


class Episodes:
    """Environments by handle. No method raises an exception of an environment.

    Every answer passes `envs.contract`, in this process and in workers alike.

    Args:
      families: Environments that are given as classes; all others are looked up by name.
    """

    def __init__(self, families: Families | None = None) -> None:
        self._episodes: dict[int, contract.Episode] = {}
        self._families = families or Families({})

    def perform(self, request: Request) -> Answer:
        """Carries out one request. The episode of a fault is forgotten."""
        try:
            if isinstance(request, Reset):
                return self._reset(request)
            return self._act(request)
        except UserError as error:
            return Fault(first_line(error, limit=1000), mendable=True)
        except contract.ContractError as error:
            self._episodes.pop(request.handle, None)
            return Fault(printable(str(error)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and cancellations are an environment's, too
            episode = self._episodes.pop(request.handle, None)
            where = f"step {episode.steps + 1}: " if episode and isinstance(request, Act) else ""
            return Fault(where + contract.reason_of(error))

    def release(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self._episodes.pop(handle, None)

    def _reset(self, request: Reset) -> str:
        name = request.task.environment
        environment = self._families.load(name).create()
        self._episodes[request.handle], text = contract.reset(environment, request.task)
        return text

    def _act(self, request: Act) -> Transition:
        episode = self._episodes[request.handle]
        if request.into != request.handle:
            episode = episode.fork()
        transition = episode.step(request.action)
        self._episodes[request.into] = episode
        return transition


def request_to_json(request: Request) -> list[Any]:
    if isinstance(request, Reset):
        return [request.handle, to_json(request.task)]
    return [request.handle, request.action, request.into]


def request_from_json(value: list[Any]) -> Request:
    if len(value) == 2:
        return Reset(value[0], task_from_json(value[1]))
    return Act(*value)


def answer_to_json(answer: Answer) -> Any:
    match answer:
        case str():
            return answer
        case Fault():
            return {"reason": answer.reason, "mendable": answer.mendable}
        case Transition():
            return [
                answer.observation,
                answer.reward,
                answer.done,
                answer.success,
                answer.valid,
            ]


def answer_from_json(value: Any) -> Answer:
    """Returns the answer in a JSON value.

    Raises:
      ValueError: It is none.
    """
    match value:
        case str():
            return value
        case {"reason": str(reason), "mendable": bool(mendable)}:
            return Fault(reason, mendable)
        case [str(text), int() | float() as reward, bool(done), bool(success), bool(valid)]:
            return Transition(
                observation=text, reward=reward, done=done, success=success, valid=valid
            )
    raise ValueError("it has another form")
