"""Episodes of simulators that cannot be copied: a fork is a history that is played again.

A process keeps few simulators alive, each at some moment of some episode. An episode that acts
takes the one that stands where it does, if there is one; else another is reset and brought there,
and every answer on the way must be what it was.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Protocol

from agentrm_jax.core.records import Task, Transition


class Simulator(Protocol):
    """A simulator that plays one episode at a time and can begin another."""

    def reset(self, task: Task) -> str: ...

    def step(self, action: str) -> Transition: ...


class ReplayDiffersError(RuntimeError):
    """A simulator that did the same again did not answer the same."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Moment:
    """An action and its answer, after those of `before`; the first is the reset of `task`."""

    task: Task
    before: Moment | None
    action: str
    answer: str | Transition

    def history(self) -> list[Moment]:
        """From the reset to this moment."""
        found: list[Moment] = []
        moment: Moment | None = self
        while moment is not None:
            found.append(moment)
            moment = moment.before
        return found[::-1]


class Simulators:
    """The live simulators of this process.

    Args:
      make: Makes one.
      most: How many are kept alive.
      same: Whether the answer to a replayed action is the one that it had.

    Attributes:
      replayed: Actions that were played again.
    """

    def __init__(
        self,
        make: Callable[[], Simulator],
        most: int,
        same: Callable[[Transition, Transition], bool] = operator.eq,
    ) -> None:
        self.replayed = 0
        self._make, self._most, self._same = make, most, same
        # Least recently used first; None: it stands nowhere.
        self._live: list[tuple[Simulator, Moment | None]] = []

    def reset(self, task: Task) -> Moment:
        simulator = self._take()
        moment = Moment(task, None, "", simulator.reset(task))
        self._live.append((simulator, moment))
        return moment

    def step(self, moment: Moment, action: str) -> Moment:
        """Acts where the moment left off.

        Raises:
          ReplayDiffersError: The way there could not be gone again.
        """
        simulator = self._at(moment)
        answer = simulator.step(action)
        after = Moment(moment.task, moment, action, answer)
        self._live.append((simulator, after))
        return after

    def _at(self, moment: Moment) -> Simulator:
        """A simulator that stands at the moment; it is no longer among the live ones, so that one
        that raises is not used again."""
        for place, (simulator, stands) in enumerate(self._live):
            if stands is moment:
                del self._live[place]
                return simulator
        simulator = self._take()
        first, *later = moment.history()
        if (text := simulator.reset(moment.task)) != first.answer:
            raise ReplayDiffersError(f"the first observation was {first.answer!r}, now {text!r}")
        for number, one in enumerate(later, start=1):
            answer = simulator.step(one.action)
            assert isinstance(one.answer, Transition)
            self.replayed += 1
            if not self._same(one.answer, answer):
                raise ReplayDiffersError(
                    f"step {number}, {one.action!r}, was answered by {one.answer}, now by {answer}"
                )
        return simulator

    def _take(self) -> Simulator:
        return self._make() if len(self._live) < self._most else self._live.pop(0)[0]


class ReplayedEpisode:
    """One episode (`core.protocols.Environment`)."""

    def __init__(self, simulators: Simulators) -> None:
        self._simulators = simulators
        self._moment: Moment | None = None

    def reset(self, task: Task) -> str:
        self._moment = self._simulators.reset(task)
        return self._moment.answer  # pyright: ignore[reportReturnType]; the pool checks it

    def step(self, action: str) -> Transition:
        assert self._moment is not None, "step before reset"
        self._moment = self._simulators.step(self._moment, action)
        return self._moment.answer  # pyright: ignore[reportReturnType]; the pool checks it

    def fork(self) -> ReplayedEpisode:
        """Costs nothing; the way is gone again by the first of the two that acts second."""
        other = ReplayedEpisode(self._simulators)
        other._moment = self._moment
        return other
