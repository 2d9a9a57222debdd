"""Reward-guided Monte-Carlo tree search at test time: values of a reward model, no rollouts.

The trees are those of exploration (`search.tree_search`). An iteration walks down to a node that
was not expanded, samples turns there, lets each act in a copy of the environment, and scores the
new states. A score counts as the first visit of its node; the best of them (or their mean) is
backed up to the root. The return of an environment is never read: at test time it is not known.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np

from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
    Scorer,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search import tree
from agentrm_jax.search.growing import GrowingTree, Node
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode, search_node
from agentrm_jax.search.selection import SELECTION_RULES, UCB, SelectionRule, check_rule
from agentrm_jax.search.tasks import TaskQueue
from agentrm_jax.search.tree import NONE
from agentrm_jax.search.tree_search import Player, TreeSearch
from agentrm_jax.search.turns import run_turns

_UCB = UCB()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedMCTS:
    """Monte-Carlo tree search with the values of the reward model in place of rollouts.

    As in AlphaZero (arXiv 1712.01815), and for language agents in LATS (arXiv 2310.04406). The
    answer is a finished state. If none has finished after the iterations, the search continues
    from the unfinished leaf with the best score: it expands the leaf and moves to the best child
    until this child is finished. These turns count as costs. A finished state that is selected
    again keeps its score; such an iteration costs no turn.

    A state without a score (NaN) comes after its siblings and is not backed up. If no child of an
    expansion has a score, the score of the expanded state is backed up, or 0 if it has none.

    Attributes:
      num_iterations: Iterations of each tree.
      expansion_width: Turns sampled when a node is expanded; equal actions are merged.
      selection: The rule by which the search enters the children of a node. Its constant is in
        units of the scores.
      backup: The value of an expansion: the `best` score of the children or their `mean`.
      answer: `best_score`: the finished state with the best score, the first of equals;
        `most_visits`: the one with the most visits, of equals the one with the best score.
      concurrency: Tasks searched at the same time. It changes speed, never results.
    """

    scores_states: ClassVar[bool] = True

    num_iterations: int = 20
    expansion_width: int = 5
    selection: Annotated[SelectionRule, SELECTION_RULES] = _UCB
    backup: Literal["best", "mean"] = "best"
    answer: Literal["best_score", "most_visits"] = "best_score"
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_iterations="[1, 1000000]",
            expansion_width="[1, 10000]",
            concurrency="[1, 100000]",
        )
        check_rule(self.selection)
        check_choice("backup", self.backup, ("best", "mean"))
        check_choice("answer", self.answer, ("best_score", "most_visits"))

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the answer to each task, with the nodes of its tree; see `Method.run`."""
        if not tasks:
            return iter(())
        return run_turns(policy, _GuidedSearch(scorer, envs, tasks, self), self.concurrency)


@dataclasses.dataclass(slots=True)
class _ScoredTree(GrowingTree):
    """A tree with the scores of its states and its costs.

    Attributes:
      scores: Score of each node but the root, NaN if the reward model did not decide.
      greedy: Whether the iterations are over and the search continues from the best leaf.
    """

    began: float = 0.0
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    policy_tokens: int = 0
    truncated_steps: int = 0
    greedy: bool = False

    @property
    def finished(self) -> list[int]:
        """The nodes whose episodes are over."""
        return [n for n, node in enumerate(self.nodes) if node.trajectory.done]

    @property
    def leaves(self) -> list[int]:
        """The nodes that selection may enter and that were not expanded."""
        return [
            n for n, node in enumerate(self.nodes) if n not in self.closed and not node.children
        ]

    def order(self, number: int) -> float:
        """The score of a node; states without a score come last."""
        score = self.scores.get(number, math.nan)
        return -math.inf if math.isnan(score) else score

    def value(self, number: int, children: Sequence[int], backup: str) -> float:
        """The value that the expansion of a node backs up."""
        scores = [score for child in children if not math.isnan(score := self.scores[child])]
        if not scores:
            return self.own_value(number)
        return max(scores) if backup == "best" else sum(scores) / len(scores)

    def own_value(self, number: int) -> float:
        """The score of a node, 0 if it has none."""
        score = self.scores.get(number, math.nan)
        return 0.0 if math.isnan(score) else score

    def totals(self, visits: Sequence[int], sums: Sequence[float]) -> list[tuple[int, float]]:
        """Returns visits and value sum of each node, given those in the arrays.

        A state that was reached after the iterations is not in the arrays: its score is its visit.
        """
        return [
            (visits[n], sums[n])
            if n == 0 or (n < len(visits) and visits[n])
            else (1, self.scores[n])
            for n in range(len(self.nodes))
        ]

    def search_nodes(
        self, chosen: Sequence[int], totals: Sequence[tuple[int, float]]
    ) -> tuple[SearchNode, ...]:
        """Returns records of all nodes and, after them, of the candidates that failed."""
        found = []
        for n, (node, (visits, total)) in enumerate(zip(self.nodes, totals, strict=True)):
            state, value = node.trajectory, total / max(visits, 1)
            found.append(
                search_node(
                    state,
                    node.parent,
                    score=self.scores.get(n, math.nan),
                    visits=visits,
                    value=value if visits and math.isfinite(value) else None,
                    status="finished" if state.done else "kept" if node.children else "removed",
                    chosen=n in chosen,
                )
            )
        found += [
            SearchNode(
                parent=failure.node,
                action=failure.action,
                observation=failure.reason,
                visits=0,
                status="failed",
            )
            for failure in self.failures
        ]
        return tuple(found)


class _GuidedSearch(TreeSearch[_ScoredTree, Rollout]):
    """Guided search as the turn loop drives it."""

    def __init__(
        self, scorer: Scorer, pool: EnvironmentPool, tasks: Sequence[Task], config: GuidedMCTS
    ) -> None:
        super().__init__(pool, config.selection, config.expansion_width)
        self._scorer, self._config = scorer, config
        self._results: list[Rollout] = []
        self._prepare(
            TaskQueue(tasks),
            num_slots=min(config.concurrency, len(tasks)),
            num_nodes=1 + config.num_iterations * config.expansion_width,
            width=config.expansion_width,
        )

    def begin(self, count: int) -> Iterator[Rollout]:
        for e, task, answer in self._enter(count):
            began = time.monotonic()
            if isinstance(answer, EnvironmentFailure):
                nothing = Trajectory(task=task, first_observation="")
                yield Rollout(trajectory=nothing, error=answer.reason)
                continue
            handle, observation = answer
            trajectory = Trajectory(task=task, first_observation=observation)
            root = Node(parent=NONE, trajectory=trajectory, handle=handle)
            self._slots[e] = _ScoredTree(task=task, nodes=[root], began=began)

    def _reach(self, e: int, leaf: int) -> None:
        self._tree(e).expanding = leaf

    def play(self, answers: Sequence[tuple[Player, list[Proposal]]]) -> Iterator[Rollout]:
        """Expands the waiting nodes, scores their children and backs up; yields what ended.

        Trees end in `questions` as well: the loop calls `play` after it.
        """
        answered = self._complete(answers)
        for e, proposals in answered.items():
            growing = self._tree(e)
            growing.policy_tokens += sum(proposal.tokens for proposal in proposals)
            growing.truncated_steps += sum(proposal.truncated_steps for proposal in proposals)
        if answered:
            nodes = {e: self._tree(e).waiting for e in answered}
            new = self._grow(answered)
            self._score({e: children for e, children in new.items() if children})
            self._advance(nodes, new)
            for e in nodes:
                growing = self._tree(e)
                closed = growing.end_expansion()
                if 0 in closed or not growing.greedy:
                    self._close(e, closed)
                self._end_iterations(e, new[e])
        results, self._results = self._results, []
        yield from results

    def _score(self, new: Mapping[int, list[int]]) -> None:
        """Scores the new states of all trees in one call, those of a tree as a group."""
        trees = {e: self._tree(e) for e in new}
        groups = [[trees[e].nodes[n].trajectory for n in children] for e, children in new.items()]
        scores = scores_of(self._scorer, groups) if groups else []
        for (e, children), own in zip(new.items(), scores, strict=True):
            trees[e].scores.update(zip(children, own, strict=True))

    def _advance(self, nodes: Mapping[int, int], new: Mapping[int, list[int]]) -> None:
        """Attaches the children with their scores; an expansion that has any is an iteration.

        After the iterations nothing is selected and the arrays have no room: they stay the same.
        """
        selecting = {e: number for e, number in nodes.items() if not self._tree(e).greedy}
        changes = self._attachment(selecting, new, expands=True)
        for e, number in selecting.items():
            growing, children = self._tree(e), new[e]
            if children:
                values = [growing.order(child) for child in children]
                changes.first_value[e, : len(children)] = values
                changes.leaf[e] = number
                changes.outcome[e] = growing.value(number, children, self._config.backup)
                growing.iteration += 1
        self._trees = tree.advance(self._trees, changes)

    def _back_up(self, leaves: Mapping[int, int]) -> None:
        """Ends the iterations that selected a finished state: it keeps its score."""
        if not leaves:
            return
        changes = tree.Changes.none_of(self._trees)
        for e, number in leaves.items():
            growing = self._tree(e)
            changes.leaf[e], changes.outcome[e] = number, growing.own_value(number)
            growing.iteration += 1
        self._trees = tree.advance(self._trees, changes)
        for e in leaves:
            self._end_iterations(e, [])

    def _end_iterations(self, e: int, children: Sequence[int]) -> None:
        """Ends a tree after its last iteration, or continues from the best unfinished leaf.

        Args:
          e: The slot; its tree may have ended already.
          children: The nodes of the last expansion, if there was one.
        """
        growing = self._slots[e]
        if growing is None or not growing.walks or growing.iteration < self._config.num_iterations:
            return
        candidates = children if growing.greedy else []
        if not candidates and not growing.finished:
            candidates = growing.leaves
        if not candidates:
            self._retire(e, None)
            return
        growing.greedy = True
        best = max(candidates, key=growing.order)
        if growing.nodes[best].trajectory.done:
            self._retire(e, None)
        else:
            growing.expanding = best

    def _retire(self, e: int, error: str | None) -> None:
        """Ends a tree with its answer; after an error this is the state without steps."""
        growing = self._tree(e)
        totals = growing.totals(
            np.asarray(self._trees.visit_count)[e].tolist(),
            np.asarray(self._trees.value_sum)[e].tolist(),
        )

        def rank(number: int) -> tuple[int, float]:
            visits = totals[number][0] if self._config.answer == "most_visits" else 0
            return visits, growing.order(number)

        answer = max(growing.finished, key=rank, default=0)
        self._results.append(
            Rollout(
                trajectory=growing.nodes[answer].trajectory,
                policy_tokens=growing.policy_tokens,
                truncated_steps=growing.truncated_steps,
                env_steps=len(growing.nodes) - 1,
                wall_seconds=time.monotonic() - growing.began,
                failed_candidates=len(growing.failures),
                reward_tokens=self._scorer.cost(
                    [growing.nodes[number].trajectory for number in growing.scores]
                ),
                error=error,
                search=growing.search_nodes(growing.path(answer), totals),
            )
        )
        self.pool.release(growing.handles)
        self._slots[e] = None
