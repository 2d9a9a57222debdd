"""A growing tree on the host: its texts and environments, by node number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agentrm_jax.core.protocols import Proposal, Question
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.data.trees import FailureRecord, IterationRecord, NodeRecord
from agentrm_jax.search.tree import NONE
from agentrm_jax.search.turns import ATTEMPTS


@dataclasses.dataclass(slots=True)
class Node:
    """A node; `handle` is its environment, or None."""

    parent: int
    trajectory: Trajectory
    handle: int | None = None
    children: list[int] = dataclasses.field(default_factory=list)
    visited: bool = False

    @property
    def action(self) -> str:
        return self.trajectory.steps[-1].action


@dataclasses.dataclass(slots=True)
class GrowingTree:
    """A tree and the state of its current iteration.

    Attributes:
      asked: Whether a request to the policy is open or its answer not yet played.
      new: Nodes attached in the current iteration.
      expanding: The node that waits for children, if any.
      rolling: The last node of the current rollout, if any.
      rollout_handle: Its environment.
      rollout_leaf: The selected node in which the rollout began.
      attempt: Number of times that all sampled turns of the waiting node failed.
      closed: Nodes that selection does not enter: no candidate below them is left.
      closed_now: Nodes closed in the current iteration.
      expanded_now: Nodes that were expanded in the current iteration.
      failures: Candidates that failed in the current iteration.
      last_failure: The reason of the last failure.
    """

    task: Task
    nodes: list[Node]
    iteration: int = 0
    asked: bool = False
    new: list[NodeRecord] = dataclasses.field(default_factory=list)
    expanding: int | None = None
    rolling: int | None = None
    rollout_handle: int | None = None
    rollout_leaf: int = NONE
    attempt: int = 0
    closed: set[int] = dataclasses.field(default_factory=set)
    closed_now: list[int] = dataclasses.field(default_factory=list)
    expanded_now: list[int] = dataclasses.field(default_factory=list)
    failures: list[FailureRecord] = dataclasses.field(default_factory=list)
    last_failure: str | None = None

    @property
    def walks(self) -> bool:
        """Whether selection continues; if not, the tree waits for the policy."""
        return self.expanding is None and self.rolling is None

    @property
    def waiting(self) -> int:
        """The node whose state the policy is asked about."""
        node = self.expanding if self.expanding is not None else self.rolling
        assert node is not None
        return node

    @property
    def handles(self) -> list[int]:
        """The environments of its nodes and of its rollout."""
        handles = [node.handle for node in self.nodes] + [self.rollout_handle]
        return [handle for handle in handles if handle is not None]

    def question(self, expansion_width: int) -> Question:
        """Returns the request for the waiting node: turns to expand it, or one for its rollout."""
        purpose, n = ("rollout", 1) if self.expanding is None else ("expand", expansion_width)
        state = self.nodes[self.waiting].trajectory
        name = f"{purpose}/{self.waiting}"
        if self.attempt:
            name += f"/again/{self.attempt}"
        # Trees with fewer iterations go first, so that none is left when the others are done.
        rank = self.iteration + len(state.steps) / (1 + state.task.max_steps)
        return Question(state, name, n, rank)

    def handle(self, number: int) -> int:
        """The environment of a node that has one."""
        handle = self.nodes[number].handle
        assert handle is not None
        return handle

    def add(self, parent: int, step: Step, multiplicity: int, handle: int | None) -> int:
        """Attaches a node and returns its number."""
        number = len(self.nodes)
        trajectory = self.nodes[parent].trajectory.extended(step)
        self.nodes.append(Node(parent=parent, trajectory=trajectory, handle=handle))
        self.nodes[parent].children.append(number)
        record = NodeRecord(node=number, parent=parent, step=step, multiplicity=multiplicity)
        self.new.append(record)
        return number

    def merged(
        self, parent: int, proposals: list[Proposal], key_of: Callable[[Task, str], str]
    ) -> list[tuple[Proposal, int]]:
        """Returns the first proposal of each action that is not yet a child, and its multiplicity.

        Args:
          parent: The node.
          proposals: Turns sampled for it.
          key_of: `EnvironmentPool.action_key`; actions with equal keys are merged.
        """
        known = {key_of(self.task, self.nodes[c].action) for c in self.nodes[parent].children}
        counts: dict[str, int] = {}
        first: dict[str, Proposal] = {}
        for proposal in proposals:
            key = key_of(self.task, proposal.action)
            if key not in known:
                first.setdefault(key, proposal)
                counts[key] = counts.get(key, 0) + 1
        return [(proposal, counts[key]) for key, proposal in first.items()]

    def open_children(self, number: int) -> list[int]:
        """The children of a node that selection may enter, in order."""
        return [child for child in self.nodes[number].children if child not in self.closed]

    def close(self, number: int) -> list[int]:
        """Closes a node to selection, and every ancestor that has no other open child.

        Returns:
          The nodes that are closed by it; with the root, the tree has no candidate left.
        """
        found = []
        while number != NONE and not self.open_children(number):
            found.append(number)
            self.closed.add(number)
            number = self.nodes[number].parent
        self.closed_now += found
        return found

    def close_waiting(self) -> list[int]:
        """Closes the selected node that waits for the policy: its rollout or expansion failed."""
        top = self.expanding if self.expanding is not None else self.rollout_leaf
        self.expanding = self.rolling = self.rollout_handle = None
        self.rollout_leaf, self.attempt = NONE, 0
        below = self.open_children(top)
        self.closed.update(below)
        self.closed_now += below
        return [*below, *self.close(top)]

    def fail(self, at: int, action: str, multiplicity: int, purpose: str, reason: str) -> None:
        """Notes a candidate whose environment failed."""
        record = FailureRecord(
            node=at, action=action, multiplicity=multiplicity, purpose=purpose, reason=reason
        )
        self.failures.append(record)
        self.last_failure = reason

    def end_expansion(self) -> list[int]:
        """Ends the expansion of the waiting node, or has its turns sampled again if all failed.

        Returns:
          The nodes that are closed by it.
        """
        node = self.waiting
        without_child = not self.open_children(node)
        if without_child and self.attempt + 1 < ATTEMPTS:
            self._sample_again()
            return []
        self.expanding, self.attempt = None, 0
        self.expanded_now.append(node)
        return self.close(node) if without_child else []

    def _sample_again(self) -> None:
        """Counts an expansion of which every candidate failed; its turns count for nothing else."""
        self.attempt += 1
        self.failures = [
            dataclasses.replace(failure, purpose="expand again")
            if (failure.node, failure.purpose) == (self.expanding, "expand")
            else failure
            for failure in self.failures
        ]

    def path(self, leaf: int) -> tuple[int, ...]:
        """Root to leaf."""
        nodes: list[int] = []
        while leaf != NONE:
            nodes.append(leaf)
            leaf = self.nodes[leaf].parent
        return tuple(reversed(nodes))

    def finish_iteration(self, leaf: int) -> IterationRecord:
        """Closes the iteration that ended in a terminal node."""
        record = IterationRecord(
            task_id=self.task.task_id,
            iteration=self.iteration,
            nodes=tuple(self.new),
            path=self.path(leaf),
            outcome=self.nodes[leaf].trajectory.outcome,
            failures=tuple(self.failures),
            closed=tuple(self.closed_now),
            expanded=tuple(self.expanded_now) if self.failures else (),
        )
        self._mark(record)
        return record

    def restore(self, record: IterationRecord) -> None:
        """Repeats a stored iteration. Environments are replayed when they are needed."""
        for node in record.nodes:
            self.add(node.parent, node.step, node.multiplicity, None)
        self.closed.update(record.closed)
        if record.failures:
            self.last_failure = record.failures[-1].reason
        self._mark(record)

    def _mark(self, record: IterationRecord) -> None:
        for node in record.path:
            self.nodes[node].visited = True
        self.new, self.closed_now, self.expanded_now, self.failures = [], [], [], []
        self.rolling = self.rollout_handle = None
        self.rollout_leaf, self.attempt = NONE, 0
        self.iteration += 1
