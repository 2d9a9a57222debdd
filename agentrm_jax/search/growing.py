"""A growing tree on the host: its texts and environments, by node number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agentrm_jax.core.protocols import Proposal, Question
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.data.trees import BackupRecord, FailureRecord, IterationRecord, NodeRecord
from agentrm_jax.search.tree import NONE
from agentrm_jax.search.turns import ATTEMPTS, TurnKey, turn_key


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
class RolloutGroup:
    """Rollouts that took equal actions so far.

    Attributes:
      node: The last node of them.
      count: The number of rollouts.
      handle: Their environment at the node; None if the node's own is copied.
    """

    node: int
    count: int
    handle: int | None = None


@dataclasses.dataclass(slots=True)
class GrowingTree:
    """A tree and the state of its current iteration.

    Attributes:
      num_rollouts: The rollouts of an iteration.
      answers: The policy's turns by number of the request in `questions`; None for an open request.
        Empty if nothing was asked or all is played.
      new: Nodes attached in the current iteration.
      expanding: The node that waits for children, if any.
      rolling: The rollouts of the current iteration that take their next step.
      moved: The rollouts that have taken it and wait for the others.
      ended: The terminal nodes of the finished rollouts; a node stands once for each.
      rollout_leaf: The selected node in which the rollouts began.
      attempt: Number of times that all sampled turns of the waiting node failed.
      closed: Nodes that selection does not enter: no candidate below them is left.
      closed_now: Nodes closed in the current iteration.
      expanded_now: Nodes that were expanded in the current iteration.
      failures: Candidates that failed in the current iteration.
      last_failure: The reason of the last failure.
    """

    task: Task
    nodes: list[Node]
    num_rollouts: int = 1
    iteration: int = 0
    answers: dict[int, list[Proposal] | None] = dataclasses.field(default_factory=dict)
    new: list[NodeRecord] = dataclasses.field(default_factory=list)
    expanding: int | None = None
    rolling: list[RolloutGroup] = dataclasses.field(default_factory=list)
    moved: list[RolloutGroup] = dataclasses.field(default_factory=list)
    ended: list[int] = dataclasses.field(default_factory=list)
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
        return self.expanding is None and not self.rolling

    @property
    def waiting(self) -> int:
        """The node that waits for children."""
        assert self.expanding is not None
        return self.expanding

    @property
    def needed(self) -> list[int]:
        """The nodes that need an environment of their own for the next step."""
        if self.expanding is not None:
            return [self.expanding]
        return [group.node for group in self.rolling if group.handle is None]

    @property
    def handles(self) -> list[int]:
        """The environments of its nodes and of its rollouts."""
        groups = [*self.rolling, *self.moved]
        handles = [each.handle for each in (*self.nodes, *groups)]
        return [handle for handle in handles if handle is not None]

    def questions(self, expansion_width: int) -> list[Question]:
        """Returns the requests for the next step: turns to expand a node, or one for each rollout.

        Rollouts that are all in one state are one request, others have one each: so the policy is
        asked for few different numbers of turns.
        """
        if self.expanding is not None:
            return [self._question("expand", self.expanding, expansion_width)]
        questions: list[Question] = []
        for group in self.rolling:
            if group.count == self.num_rollouts:
                questions.append(self._question("rollout", group.node, group.count))
            else:
                questions += [
                    self._question("rollout", group.node, 1, j) for j in range(group.count)
                ]
        return questions

    def _question(self, purpose: str, node: int, n: int, number: int = 0) -> Question:
        state = self.nodes[node].trajectory
        name = f"{purpose}/{node}" + (f"/{number}" if number else "")
        if self.attempt:
            name += f"/again/{self.attempt}"
        # Trees with fewer iterations go first, so that none is left when the others are done.
        rank = self.iteration + len(state.steps) / (1 + state.task.max_steps)
        return Question(state, name, n, rank)

    def begin_rollouts(self, leaf: int) -> None:
        """Begins the rollouts of the iteration in a node."""
        self.rollout_leaf, self.rolling = leaf, [RolloutGroup(leaf, self.num_rollouts)]

    def parted(
        self, group: RolloutGroup, turns: list[Proposal], key_of: Callable[[Task, str], str]
    ) -> list[tuple[Proposal, int]]:
        """Divides rollouts by their actions.

        Those whose action led to a child before join the rollouts there.

        Args:
          group: The rollouts.
          turns: A turn for each.
          key_of: As in `merged`.

        Returns:
          The first proposal of each action that is not yet a child, and its number of rollouts.
        """
        children = {
            (False, key_of(self.task, self.nodes[child].action)): child
            for child in self.nodes[group.node].children
        }
        for turn in turns:
            child = children.get(turn_key(self.task, turn, key_of))
            if child is not None:
                self.arrive(child, 1, None)
        return self.merged(group.node, turns, key_of)

    def arrive(self, node: int, count: int, handle: int | None) -> None:
        """Moves rollouts to a node, of which `handle` is an environment."""
        if self.nodes[node].trajectory.done:
            self.ended += [node] * count
            return
        there = next((group for group in self.moved if group.node == node), None)
        if there is None:
            self.moved.append(RolloutGroup(node, count, handle))
        else:
            there.count += count

    def end_step(self) -> list[RolloutGroup]:
        """Ends a step of the rollouts; turns that failed are sampled again.

        Returns:
          The rollouts that cannot continue.
        """
        lost = self.rolling
        if lost and self.attempt + 1 < ATTEMPTS:
            self.attempt += 1
            return []
        self.rolling, self.moved, self.attempt = self.moved, [], 0
        self.ended.sort()
        return lost

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
        children = self.nodes[parent].children
        known = {(False, key_of(self.task, self.nodes[child].action)) for child in children}
        counts: dict[TurnKey, int] = {}
        first: dict[TurnKey, Proposal] = {}
        for proposal in proposals:
            key = turn_key(self.task, proposal, key_of)
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
        self.expanding, self.rolling = None, []
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

    def finish_iteration(self) -> IterationRecord:
        """Closes the iteration, whose rollouts have ended."""
        first, *further = [
            BackupRecord(path=self.path(leaf), outcome=self.nodes[leaf].trajectory.outcome)
            for leaf in self.ended
        ]
        record = IterationRecord(
            task_id=self.task.task_id,
            iteration=self.iteration,
            nodes=tuple(self.new),
            path=first.path,
            outcome=first.outcome,
            further=tuple(further),
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
        for backup in record.backups:
            for node in backup.path:
                self.nodes[node].visited = True
        self.new, self.closed_now, self.expanded_now, self.failures = [], [], [], []
        self.rolling, self.ended = [], []
        self.rollout_leaf, self.attempt = NONE, 0
        self.iteration += 1
