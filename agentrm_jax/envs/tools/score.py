"""Scores of the tool tasks: AgentBoard's parts of a goal, and sheets cell by cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.episode import Result, World

_NEAR_KM = 50  # two places are the same within this
_EARTH_KM = 6371
Rows = Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """A goal in parts, each a tool's answer or the final answer (AgentBoard's sub-goals).

    Attributes:
      left: Parts that were not reached yet.
      count: How many parts there are.
      state: What the world has to hold at the end, or None if that does not matter.
      state_of: How it is read.
      only_success: Whether the progress is 1 at a successful end and 0 before.
    """

    left: tuple[Any, ...]
    count: int
    state: Any = None
    state_of: Callable[[Any], Any] | None = None
    only_success: bool = False
    ended_well: bool = False

    @property
    def progress(self) -> float:
        if self.only_success:
            return float(self.ended_well)
        return (self.count - len(self.left)) / self.count

    @property
    def success(self) -> bool:
        return self.ended_well

    def after(self, result: Result, world: World, finished: bool) -> Parts:
        left = self.left
        for place, part in enumerate(left):
            if same(part, result.reached):
                left = left[:place] + left[place + 1 :]
                break
        right = self.state_of is None or not finished or self.state_of(world) == self.state
        return dataclasses.replace(self, left=left, ended_well=finished and not left and right)


def same(part: Any, reached: Any) -> bool:
    """Whether an answer is the part; answers about a place may be about one nearby."""
    if _is_place(part) and _is_place(reached):
        return _distance(part, reached) < _NEAR_KM and _rest(part) == _rest(reached)
    return bool(part == reached)


def _is_place(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(name), int | float) for name in ("latitude", "longitude")
    )


def _rest(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in ("latitude", "longitude")}


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Kilometres on a sphere."""
    south, north = math.radians(one["latitude"]), math.radians(other["latitude"])
    east = math.radians(other["longitude"] - one["longitude"])
    half = math.sin((north - south) / 2) ** 2
    half += math.cos(south) * math.cos(north) * math.sin(east / 2) ** 2
    return 2 * _EARTH_KM * math.atan2(math.sqrt(half), math.sqrt(max(0.0, 1 - half)))


@dataclasses.dataclass(frozen=True, slots=True)
class SheetMatch:
    """The agreement of a sheet with the wanted one.

    Attributes:
      answer: The wanted cells, as they are shown.
      shown: How the world's cells are read.
      whole: Whether the shapes have to agree and the end counts. Else it is AgentBoard's measure:
        the cells that both have, at their best after any step.
      best: The best share so far.
      now: The share now.
    """

    answer: Rows
    shown: Callable[[Any], Rows | None]
    whole: bool
    best: float = 0.0
    now: float = 0.0

    @property
    def progress(self) -> float:
        return self.best

    @property
    def success(self) -> bool:
        return (self.now if self.whole else self.best) == 1.0

    def after(self, result: Result, world: World, finished: bool) -> SheetMatch:
        shown = self.shown(world)
        now = 0.0 if shown is None else agreement(shown, self.answer, whole=self.whole)
        return dataclasses.replace(self, now=now, best=max(self.best, now))


def agreement(shown: Rows, answer: Rows, *, whole: bool) -> float:
    """The share of cells that agree, of those that both sheets have or (`whole`) either has."""
    pick = max if whole else min
    height = pick(len(shown), len(answer))
    width = pick(len(shown[0]) if shown else 0, len(answer[0]) if answer else 0)
    equal = sum(
        one == other
        for ones, others in zip(shown[:height], answer[:height], strict=False)
        for one, other in zip(ones[:width], others[:width], strict=False)
    )
    return equal / (height * width) if height * width else 0.0
