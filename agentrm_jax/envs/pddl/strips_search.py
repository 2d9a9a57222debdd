"""Plans for STRIPS problems: best-first search guided by relaxed plans.

A relaxed plan reaches the goal when nothing is ever deleted (Hoffmann and Nebel, 2001, "The FF
planning system"). Its length estimates what is left to do; its actions that are possible at
once are the helpful ones, tried alone first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from agentrm_jax.envs.pddl.strips import Action, Atom, Problem


def find_plan(
    problem: Problem,
    actions: Sequence[Action],
    *,
    max_length: int,
    max_states: int = 3000,
) -> list[Action] | None:
    """A short plan, not always the shortest one.

    First a greedy attempt, then a more careful one that may look at fewer states and is wanted
    for what it saves; where both fail, one with all actions, not only the helpful ones.

    Args:
      problem: Whose initial state and goal are taken.
      actions: All its ground actions.
      max_length: Longer plans are refused.
      max_states: How many states the greedy attempt may look at.

    Returns:
      The plan, or None if none was found (there may be one).
    """
    search = _Search(problem, actions)
    greedy = search.run(helpful_only=True, weight=5.0, max_states=max_states)
    careful = search.run(helpful_only=True, weight=1.0, max_states=max_states // 10)
    found = [plan for plan in (greedy, careful) if plan is not None]
    if not found:
        last = search.run(helpful_only=False, weight=5.0, max_states=max_states)
        found = [last] if last is not None else []
    plan = min((without_useless(problem, plan) for plan in found), key=len, default=None)
    return plan if plan is not None and len(plan) <= max_length else None


def without_useless(problem: Problem, plan: Sequence[Action]) -> list[Action]:
    """The plan without actions whose absence, with all that then fails, still reaches the goal."""
    kept = list(plan)
    index = 0
    while index < len(kept):
        state, rest = problem.init, []
        for position, action in enumerate(kept):
            if position != index and action.precondition <= state:
                state = action.apply(state)
                rest.append(action)
        if state.issuperset(problem.goal):
            kept = rest
        else:
            index += 1
    return kept


class _Search:
    """One problem with atoms as bits of an int."""

    def __init__(self, problem: Problem, actions: Sequence[Action]) -> None:
        self._actions = actions
        self._ids: dict[Atom, int] = {}
        self._start = self._mask(problem.init)
        self._goals = [self._id(atom) for atom in problem.goal]
        self._goal = self._mask(problem.goal)
        self._pre = [self._mask(a.precondition) for a in actions]
        self._add = [self._mask(a.add) for a in actions]
        self._keep = [~self._mask(a.delete) for a in actions]
        self._pre_ids = [[self._id(atom) for atom in sorted(a.precondition)] for a in actions]
        self._add_ids = [[self._id(atom) for atom in sorted(a.add)] for a in actions]
        self._users: list[list[int]] = [[] for _ in self._ids]
        for index, needed in enumerate(self._pre_ids):
            for atom in needed:
                self._users[atom].append(index)
        self._needs = [len(needed) for needed in self._pre_ids]
        self._free = [index for index, count in enumerate(self._needs) if count == 0]

    def _id(self, atom: Atom) -> int:
        return self._ids.setdefault(atom, len(self._ids))

    def _mask(self, atoms: Sequence[Atom] | frozenset[Atom]) -> int:
        return sum(1 << self._id(atom) for atom in atoms)

    def run(self, *, helpful_only: bool, weight: float, max_states: int) -> list[Action] | None:
        """Best-first by length so far + weight * estimate, the newest of equals first."""
        first = self.relaxed_plan(self._start)
        if first is None:
            return None
        order = itertools.count(step=-1)
        came: dict[int, tuple[int, int]] = {}
        length = {self._start: 0}
        queue = [(0.0, next(order), self._start, first[1])]
        seen = 1  # bounds the time without a clock, so that plans are the same each time
        while queue and seen < max_states:
            _, _, state, helpful = heapq.heappop(queue)
            if state & self._goal == self._goal:
                return self._path(came, state)
            for index in helpful if helpful_only else range(len(self._pre)):
                if state & self._pre[index] != self._pre[index]:
                    continue
                following = state & self._keep[index] | self._add[index]
                if length.get(following, length[state] + 2) <= length[state] + 1:
                    continue
                estimate = self.relaxed_plan(following)
                seen += 1
                length[following] = length[state] + 1
                if estimate is None:
                    continue
                came[following] = (state, index)
                cost = length[following] + weight * estimate[0]
                heapq.heappush(queue, (cost, next(order), following, estimate[1]))
        return None

    def _path(self, came: dict[int, tuple[int, int]], state: int) -> list[Action]:
        plan = []
        while state != self._start:
            state, index = came[state]
            plan.append(self._actions[index])
        return plan[::-1]

    def relaxed_plan(self, state: int) -> tuple[int, list[int]] | None:
        """The length of a relaxed plan and those of its actions that are possible now.

        None if the goal cannot be reached at all.
        """
        supporter = self._supporters(state)
        if any(goal not in supporter for goal in self._goals):
            return None
        chosen: set[int] = set()
        open_atoms = list(self._goals)
        while open_atoms:
            action = supporter[open_atoms.pop()]
            if action >= 0 and action not in chosen:
                chosen.add(action)
                open_atoms.extend(self._pre_ids[action])
        helpful = [a for a in sorted(chosen) if state & self._pre[a] == self._pre[a]]
        return len(chosen), helpful

    def _supporters(self, state: int) -> dict[int, int]:
        """For each atom that can be reached the cheapest action that adds it; -1: true already.

        Costs are sums over preconditions.
        """
        cost: dict[int, int] = {}
        supporter: dict[int, int] = {}
        needs = self._needs.copy()
        total = [1] * len(needs)
        bits = state
        queue: list[tuple[int, int]] = []
        while bits:
            low = bits & -bits
            atom = low.bit_length() - 1
            bits ^= low
            cost[atom] = 0
            supporter[atom] = -1
            queue.append((0, atom))
        for action in self._free:
            self._offer(action, 1, cost, supporter, queue)
        done: set[int] = set()
        left = set(self._goals)
        while queue and left:
            now, atom = heapq.heappop(queue)
            if atom in done:
                continue
            done.add(atom)
            left.discard(atom)
            for action in self._users[atom]:
                needs[action] -= 1
                total[action] += now
                if needs[action] == 0:
                    self._offer(action, total[action], cost, supporter, queue)
        return supporter

    def _offer(
        self,
        action: int,
        price: int,
        cost: dict[int, int],
        supporter: dict[int, int],
        queue: list[tuple[int, int]],
    ) -> None:
        for atom in self._add_ids[action]:
            if price < cost.get(atom, price + 1):
                cost[atom] = price
                supporter[atom] = action
                heapq.heappush(queue, (price, atom))
