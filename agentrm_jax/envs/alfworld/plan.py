"""A planner for ALFWorld's six kinds of task. It knows where things are.

Fast Downward could be asked as well, but has no limit but a clock: on some games it takes minutes.
All receptacles are one step apart, so a short plan is a choice of what to take and where to put it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.envs.alfworld.tasks import TREATMENTS, Goal
from agentrm_jax.envs.alfworld.text import Facts


def plan(goal: Goal, facts: Facts, names: Mapping[str, str]) -> list[str] | None:
    """The shortest of the plans that are tried, the first by name where several are; None if
    there is none."""
    house = _House(facts, names)
    plans = map(house.commands, _choices(goal, house))
    return min(plans, key=lambda commands: (len(commands), commands), default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Visit:
    """Go to a receptacle, opened where `reach` is set, and say something about a thing."""

    place: str
    command: str
    thing: str
    reach: bool = True


class _House:
    """The places of things, in the names of the game's facts (lower case)."""

    def __init__(self, facts: Facts, names: Mapping[str, str]) -> None:
        self.names = names
        self.kind_of = {o: k.removesuffix("type") for o, k in facts.get("objecttype", ())}
        self.place_kinds = {r: k.removesuffix("type") for r, k in facts.get("receptacletype", ())}
        self.places = {r for r, _ in facts.get("receptacleatlocation", ())}
        self.where = {o: r for o, r in facts.get("inreceptacle", ()) if r in self.places}
        self._facts = facts
        self._closed = self.those("openable") - self.those("opened")

    def those(self, predicate: str) -> set[str]:
        return {arguments[0] for arguments in self._facts.get(predicate, ())}

    def placed(self, kind: str) -> list[str]:
        """The receptacles of a kind."""
        return sorted(r for r in self.places if self.place_kinds.get(r) == kind)

    def things(self, kind: str) -> list[str]:
        """The things of a kind that stand somewhere."""
        return sorted(o for o in self.where if self.kind_of.get(o) == kind)

    def commands(self, visits: Sequence[_Visit]) -> list[str]:
        said, here, closed = [], "", set(self._closed)
        for visit in visits:
            place = self.names[visit.place]
            if visit.place != here:
                said.append(f"go to {place}")
                here = visit.place
            if visit.reach and visit.place in closed:
                said.append(f"open {place}")
                closed.discard(visit.place)
            said.append(visit.command.format(o=self.names[visit.thing], r=place))
        return said


def _choices(goal: Goal, house: _House) -> Iterator[list[_Visit]]:
    thing, place = goal.thing.lower(), goal.place.lower()
    portable = house.those("pickupable")
    things = [one for one in house.things(thing) if one in portable]
    if goal.kind == "look_at_obj_in_light":
        lamps = [one for one in house.things(place) if one in house.those("toggleable")]
        for one, lamp in itertools.product(things, lamps):
            use = _Visit(house.where[lamp], "use {o}", lamp, reach=False)
            yield [_take(house, one), use]
        return
    for target in house.placed(place):
        if goal.kind in TREATMENTS:
            verb, _, needed, tool = TREATMENTS[goal.kind]
            can = house.those(needed.lower())
            for one, at in itertools.product(things, house.placed(tool.lower())):
                if one in can:
                    treat = _Visit(at, f"{verb} {{o}} with {{r}}", one, reach=False)
                    yield [_take(house, one), treat, _put(target, one)]
            continue
        enough = 2 if goal.kind == "pick_two_obj_and_place" else 1
        there = [one for one in house.things(thing) if house.where[one] == target]
        away = [one for one in things if house.where[one] != target]
        for chosen in itertools.combinations(away, max(0, enough - len(there))):
            yield [visit for one in chosen for visit in (_take(house, one), _put(target, one))]


def _take(house: _House, thing: str) -> _Visit:
    return _Visit(house.where[thing], "take {o} from {r}", thing)


def _put(place: str, thing: str) -> _Visit:
    return _Visit(place, "put {o} in/on {r}", thing)
