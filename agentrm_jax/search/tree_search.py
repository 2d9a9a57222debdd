"""Trees of many tasks that grow together: the part that exploration and guided search share.

A slot holds one tree at most: its arrays are a row of `search.tree.Trees`, its texts and
environments a `GrowingTree`. One jitted call selects or updates in all trees; a finished tree makes
room for the next task.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from agentrm_jax.core.protocols import EnvironmentFailure, EnvironmentPool, Proposal, Question
from agentrm_jax.core.records import Task
from agentrm_jax.search import tree
from agentrm_jax.search.environments import act_on_turns
from agentrm_jax.search.growing import GrowingTree
from agentrm_jax.search.selection import SelectionRule
from agentrm_jax.search.tasks import TaskQueue, TaskSource
from agentrm_jax.search.turns import Result, TurnSearch

Tree = TypeVar("Tree", bound=GrowingTree)


Player = tuple[int, int]
"""A slot and the number of a request of its tree."""


class TreeSearch(TurnSearch[Player, Result], Generic[Tree, Result]):
    """Grows a tree for each task; its players are the requests of trees.

    Args:
      pool: Environments.
      selection: The rule by which the search enters the children of a node.
      expansion_width: Turns sampled when a node is expanded; equal actions are merged.
    """

    def __init__(
        self, pool: EnvironmentPool, selection: SelectionRule, expansion_width: int
    ) -> None:
        self.pool = pool
        self._selection, self._expansion_width = selection, expansion_width
        self._source: TaskSource = TaskQueue()
        self._slots: list[Tree | None] = []

    def _prepare(self, source: TaskSource, *, num_slots: int, num_nodes: int, width: int) -> None:
        """Empties all slots; `num_nodes` and `width` are the most nodes of a tree and children."""
        self._source = source
        self._slots = [None] * num_slots
        self._trees = tree.make_trees(num_slots, num_nodes, width)

    @property
    def num_waiting(self) -> int:
        return self._source.num_waiting

    @property
    def num_running(self) -> int:
        return len(self._live())

    def overlaps(self, player: Player) -> bool:
        return self.pool.elsewhere(self._tree(player[0]).task)

    def close(self) -> None:
        for growing in self._live().values():
            self.pool.release(growing.handles)

    def _live(self) -> dict[int, Tree]:
        return {e: growing for e, growing in enumerate(self._slots) if growing is not None}

    def _tree(self, e: int) -> Tree:
        growing = self._slots[e]
        assert growing is not None
        return growing

    def _enter(self, count: int) -> list[tuple[int, Task, tuple[int, str] | EnvironmentFailure]]:
        """Empties free slots for the next tasks.

        Returns:
          Each slot, its task, and the first answer of the task's environment.
        """
        if count == 0:
            return []
        tasks = self._source.take(count)
        free = [e for e, growing in enumerate(self._slots) if growing is None][: len(tasks)]
        if not tasks:
            return []
        changes = tree.Changes.none_of(self._trees)
        changes.cleared[free] = True
        self._trees = tree.advance(self._trees, changes)
        return list(zip(free, tasks, self.pool.reset(tasks), strict=True))

    def _select(self) -> None:
        """Walks down every tree that is between phases, until each needs the policy or is done.

        A walk to a known terminal node is a whole iteration.
        """
        while idle := {e: growing for e, growing in self._live().items() if growing.walks}:
            chosen = np.asarray(tree.select(self._trees, self._selection))
            ended: dict[int, int] = {}
            for e, growing in idle.items():
                leaf = int(chosen[e])
                if growing.nodes[leaf].trajectory.done:
                    ended[e] = leaf
                else:
                    self._reach(e, leaf)
            self._back_up(ended)

    @abc.abstractmethod
    def _reach(self, e: int, leaf: int) -> None:
        """Begins the phase that follows on a walk to a node whose episode is not over."""

    @abc.abstractmethod
    def _back_up(self, leaves: Mapping[int, int]) -> None:
        """Ends the iterations that reached these terminal nodes, by slot."""

    @abc.abstractmethod
    def _retire(self, e: int, error: str | None) -> None:
        """Ends a tree and frees its slot."""

    def questions(self) -> list[tuple[Player, Question]]:
        self._select()
        questions: list[tuple[Player, Question]] = []
        for e, growing in self._live().items():
            if not growing.answers:
                for number, question in enumerate(growing.questions(self._expansion_width)):
                    growing.answers[number] = None
                    questions.append(((e, number), question))
        return questions

    def _complete(
        self, answers: Sequence[tuple[Player, list[Proposal]]]
    ) -> dict[int, list[Proposal]]:
        """Stores answers and returns the proposals of trees whose requests are all answered.

        Returns:
          The proposals by slot, in the order of the slots and of the requests of each tree.
        """
        for (e, number), proposals in answers:
            self._tree(e).answers[number] = proposals
        complete: dict[int, list[Proposal]] = {}
        for e in sorted({e for (e, _), _ in answers}):
            growing = self._tree(e)
            found = [own for own in growing.answers.values() if own is not None]
            if len(found) == len(growing.answers):
                complete[e] = [proposal for own in found for proposal in own]
                growing.answers = {}
        return complete

    def _grow(self, answered: Mapping[int, list[Proposal]]) -> dict[int, list[int]]:
        """Lets copies of environments act on the distinct turns that expand the waiting nodes.

        Returns:
          The new nodes of each slot: the candidates whose environments did not fail.
        """
        nodes = {e: self._tree(e).waiting for e in answered}
        candidates: list[tuple[int, Proposal, int]] = []
        requests: list[tuple[int, Proposal, bool]] = []
        for e, group in answered.items():
            growing = self._tree(e)
            for proposal, multiplicity in growing.merged(nodes[e], group, self.pool.action_key):
                candidates.append((e, proposal, multiplicity))
                requests.append((growing.handle(nodes[e]), proposal, True))
        new: dict[int, list[int]] = {e: [] for e in nodes}
        answers = act_on_turns(self.pool, requests)
        for (e, proposal, multiplicity), answer in zip(candidates, answers, strict=True):
            if isinstance(answer, EnvironmentFailure):
                self._tree(e).fail(nodes[e], proposal.action, multiplicity, "expand", answer.reason)
                continue
            handle, transition = answer
            if transition.done:
                self.pool.release([handle])
                handle = None
            step = proposal.as_step(transition)
            new[e].append(self._tree(e).add(nodes[e], step, multiplicity, handle))
        return new

    def _attachment(
        self, parents: Mapping[int, int], new: Mapping[int, list[int]], *, expands: bool
    ) -> tree.Changes:
        """Returns the changes that attach the new nodes of some trees to one node of each."""
        changes = tree.Changes.none_of(self._trees)
        for e, number in parents.items():
            nodes = self._tree(e).nodes
            changes.parent[e], changes.expands[e] = number, expands
            changes.new[e, : len(new[e])] = new[e]
            trajectories = [nodes[n].trajectory for n in new[e]]
            changes.terminal[e, : len(new[e])] = [t.done for t in trajectories]
            changes.prior_logit[e, : len(new[e])] = [
                tree.prior_logit(t.steps[-1]) for t in trajectories
            ]
        return changes

    def _close(self, e: int, closed: Sequence[int]) -> None:
        """Closes nodes to selection; ends the tree if its root is one of them."""
        if 0 in closed:
            self._retire(e, self._tree(e).last_failure)
        elif closed:
            self._trees = tree.close(self._trees, e, closed)
