"""Exploration: Monte-Carlo tree search for many tasks at once (paper section 3.2).

A turn of the loop (`search.turns`) serves all trees that wait, whatever their phase: trees that
expand ask for k turns, trees that roll out ask for one for each rollout, and all are decoded
together. One jitted call updates all trees. A finished tree makes room for the next task.

A failed environment costs one candidate; if all candidates of a node fail, turns are sampled again.
A node without an open child is closed to selection; a tree ends early only if its root is closed.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence

from agentrm_jax.agent.function import PolicyFunction, as_policy
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.search import tree
from agentrm_jax.search.environments import act_on_turns, bring_environments
from agentrm_jax.search.growing import GrowingTree, Node, RolloutGroup
from agentrm_jax.search.search_config import SearchConfig
from agentrm_jax.search.selection import UCB, SelectionRule, check_rule, name_of_rule
from agentrm_jax.search.tasks import TaskQueue, TaskSource, checked_tasks
from agentrm_jax.search.tree import NONE
from agentrm_jax.search.tree_search import Player, TreeSearch
from agentrm_jax.search.tree_sinks import TreeSink, grown_trees
from agentrm_jax.search.turns import run_turns

_UCB = UCB()

_Share = tuple[RolloutGroup, list[Proposal]]
"""Rollouts in one state, and a turn for each."""


def explore(
    policy: Policy | PolicyFunction,
    envs: EnvironmentPool,
    tasks: Sequence[Task],
    *,
    selection: SelectionRule = _UCB,
    num_iterations: int = 40,
    expansion_width: int = 5,
    concurrency: int = 64,
    store: str | pathlib.Path | None = None,
) -> list[TreeRecord]:
    """Grows a search tree for each task (paper section 3.2).

    Args:
      policy: A policy, or a function `(state, n, seed) -> texts`. Its seeds follow from seed 0;
        pass `FunctionPolicy(function, seed=1)` for others.
      envs: The environments.
      tasks: The tasks, each once.
      selection: The rule by which the search enters the children of a node: `UCB()`, `PUCT()`, or a
        function of `Children` that returns a score [E, W] for each child. JAX compiles it: it uses
        `jax.numpy`, and `jnp.where` instead of `if`.
      num_iterations: Iterations of each tree.
      expansion_width: Turns sampled when a node is expanded; equal actions are merged.
      concurrency: Trees that grow at the same time. It changes speed, never results.
      store: Folder that keeps the trees. Called again with the same arguments, after a kill too,
        explore resumes the trees there; tasks may be added. None keeps trees in memory only.

    Returns:
      The trees, in the order of `tasks`.

    Raises:
      UserError: An argument is refused, the policy breaks its protocol, or `store` holds a damaged
        tree, or trees of other settings or of another task with the same id.
    """
    tasks = checked_tasks(tasks)
    check_rule(selection)
    config = SearchConfig(
        num_iterations=num_iterations,
        expansion_width=expansion_width,
        selection=selection,
        concurrency=concurrency,
    )

    settings = {
        "selection": name_of_rule(selection),
        "num_iterations": num_iterations,
        "expansion_width": expansion_width,
    }
    acting = as_policy(policy, 0)

    def grow(sink: TreeSink, stored: Mapping[str, TreeRecord]) -> None:
        Explorer(acting, envs, sink, config).run(tasks, stored)

    return grown_trees(store, tasks, settings, grow)


class Explorer(TreeSearch[GrowingTree, None]):
    """Grows the trees of a task list.

    Args:
      policy: Proposes turns.
      pool: Environments.
      store: Receives finished iterations.
      config: The search.
      on_iteration: Called after each iteration is stored.
    """

    def __init__(
        self,
        policy: Policy,
        pool: EnvironmentPool,
        store: TreeSink,
        config: SearchConfig,
        on_iteration: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(pool, config.selection, config.expansion_width)
        self.policy, self.store, self.config = policy, store, config
        self._on_iteration = on_iteration
        self._stored: Mapping[str, TreeRecord] = {}

    def run(
        self,
        tasks: Sequence[Task],
        stored: Mapping[str, TreeRecord],
        source: TaskSource | None = None,
    ) -> None:
        """Explores every task whose tree in `stored` is absent or not finished.

        Args:
          tasks: All tasks of the exploration. Sizes follow from them.
          stored: Trees that the store holds, by task id; unfinished ones are resumed.
          source: Gives those of the tasks that this process explores, if there are several
            processes. It may add trees to `stored` as it does.
        """
        if source is None:
            source = TaskQueue(
                [t for t in tasks if not (t.task_id in stored and stored[t.task_id].finished)]
            )
        if not source.num_waiting:
            return
        self._stored = stored
        # Shapes follow from all tasks, so that nothing is compiled again on resuming.
        longest = max(task.max_steps for task in tasks)
        width, rollouts = self.config.expansion_width, self.config.num_rollouts
        # An iteration adds the children of one node and its rollouts; a node has at most one child
        # from each rollout next to the children of its expansion.
        self._prepare(
            source,
            num_slots=min(self.config.concurrency, len(tasks)),
            num_nodes=1 + self.config.num_iterations * (width + rollouts * longest),
            width=width + rollouts,
        )
        for _ in run_turns(self.policy, self, len(self._slots)):
            pass

    def begin(self, count: int) -> Sequence[None]:
        """Gives free slots the next tasks."""
        for e, task, answer in self._enter(count):
            record = self._stored.get(task.task_id)
            failed = isinstance(answer, EnvironmentFailure)
            if record is None:
                self.store.begin(task, "" if failed else answer[1])
            if failed:
                self.store.finish(task.task_id, error=answer.reason)
                continue
            handle, observation = answer
            if record is not None and record.first_observation != observation:
                self.store.finish(task.task_id, error="the environment began otherwise this time")
                self.pool.release([handle])
                continue
            trajectory = Trajectory(task=task, first_observation=observation)
            root = Node(parent=NONE, trajectory=trajectory, handle=handle)
            growing = GrowingTree(task=task, nodes=[root], num_rollouts=self.config.num_rollouts)
            self._slots[e] = growing
            if record is not None:
                self._restore(e, record)
        return ()

    def _restore(self, e: int, record: TreeRecord) -> None:
        """Restores a tree from its stored iterations."""
        for iteration in record.iterations:
            self._tree(e).restore(iteration)
        _, M, W = self._trees.children.shape
        arrays = tree.from_iterations(record.iterations, M, W)
        self._trees = tree.put(self._trees, e, arrays)
        self._finish_if_complete(e)

    def _reach(self, e: int, leaf: int) -> None:
        """Expands a node that was visited, and begins a rollout in one that was not.

        A walk continues from the expanded node after the expansion.
        """
        growing = self._tree(e)
        if leaf == 0 or growing.nodes[leaf].visited:
            growing.expanding = leaf
        else:
            growing.begin_rollouts(leaf)
        self._require_room(e)

    def _require_room(self, e: int) -> None:
        """Ends a tree whose failed candidates have used up the nodes of its iterations."""
        growing = self._tree(e)
        longest = growing.task.max_steps
        needed = self.config.expansion_width + self.config.num_rollouts * longest
        if len(growing.nodes) + needed > self._trees.parent.shape[1] and (
            growing.closed or growing.failures
        ):
            self._retire(e, f"too many candidates failed, the last with: {growing.last_failure}")

    def play(self, answers: Sequence[tuple[Player, list[Proposal]]]) -> Sequence[None]:
        """Moves the environments as the policy proposed, attaches the new nodes, backs up."""
        answered = self._complete(answers)
        trees = {e: self._tree(e) for e in answered}
        needed = [(e, node) for e, growing in trees.items() for node in growing.needed]
        failures = bring_environments(self.pool, trees, needed)
        expands = {e: answered[e] for e in trees if trees[e].expanding is not None}
        rolls = {
            e: _shares(trees[e].rolling, answered[e]) for e in trees if trees[e].expanding is None
        }
        for (e, node), reason in failures.items():
            growing = trees[e]
            if e in expands:
                del expands[e]
                growing.fail(node, "", 1, "replay", reason)
                self._close(e, growing.close_waiting())
                continue
            lost = [group for group in growing.rolling if group.node == node]
            growing.fail(node, "", lost[0].count, "replay", reason)
            growing.rolling = [group for group in growing.rolling if group.node != node]
            rolls[e] = [share for share in rolls[e] if share[0].node != node]
            self._lose(e, lost)
        # Rollouts that have moved already end their step even if all that remained are lost.
        rolls = {e: own for e, own in rolls.items() if own or trees[e].moved or trees[e].ended}
        if expands:
            self._expand(expands)
        if rolls:
            self._roll(rolls)
        return ()

    def _expand(self, answered: Mapping[int, list[Proposal]]) -> None:
        """Attaches children to the waiting nodes."""
        nodes = {e: self._tree(e).waiting for e in answered}
        new = self._grow(answered)
        self._trees = tree.advance(self._trees, self._attachment(nodes, new, expands=True))
        for e in nodes:
            self._close(e, self._tree(e).end_expansion())

    def _roll(self, shares: Mapping[int, Sequence[_Share]]) -> None:
        """Takes one step of every rollout; rollouts that part continue in copies."""
        moves: list[tuple[int, RolloutGroup, Proposal, int]] = []
        requests: list[tuple[int, Proposal, bool]] = []
        for e, own in shares.items():
            growing = self._tree(e)
            growing.rolling = []
            for group, proposals in own:
                distinct = growing.parted(group, proposals, self.pool.action_key)
                for k, (proposal, count) in enumerate(distinct):
                    copied = group.handle is None or k + 1 < len(distinct)
                    handle = growing.handle(group.node) if group.handle is None else group.handle
                    moves.append((e, group, proposal, count))
                    requests.append((handle, proposal, copied))
                if not distinct and group.handle is not None:  # all have joined others
                    self.pool.release([group.handle])
        new: dict[int, dict[int, list[int]]] = {e: {} for e in shares}
        answers = act_on_turns(self.pool, requests)
        for (e, group, proposal, count), request, answer in zip(
            moves, requests, answers, strict=True
        ):
            growing = self._tree(e)
            if isinstance(answer, EnvironmentFailure):
                growing.fail(group.node, proposal.action, count, "rollout", answer.reason)
                if not request[2]:  # it acted in place and is lost
                    self.pool.release([request[0]])
                _wait_again(growing, group.node, count)
                continue
            handle, transition = answer
            number = growing.add(group.node, proposal.as_step(transition), count, None)
            new[e].setdefault(group.node, []).append(number)
            if transition.done:
                self.pool.release([handle])
            growing.arrive(number, count, handle)
        self._attach_steps(new)
        ended = [e for e in shares if self._end_step(e)]
        self._end_iterations(ended)

    def _attach_steps(self, new: Mapping[int, Mapping[int, list[int]]]) -> None:
        """Attaches the nodes of rollouts, by slot and parent; one parent of each tree a call."""
        for k in range(max(map(len, new.values()))):
            nth = {e: list(own.items())[k] for e, own in new.items() if k < len(own)}
            parents = {e: parent for e, (parent, _) in nth.items()}
            children = {e: numbers for e, (_, numbers) in nth.items()}
            changes = self._attachment(parents, children, expands=False)
            self._trees = tree.advance(self._trees, changes)

    def _end_step(self, e: int) -> bool:
        """Ends a step of the rollouts of a tree; returns whether all of them have ended."""
        growing = self._tree(e)
        lost = growing.end_step()
        if lost:
            self._lose(e, lost)
        return bool(growing.ended) and not growing.rolling

    def _lose(self, e: int, lost: Sequence[RolloutGroup]) -> None:
        """Closes the nodes at which rollouts could not continue; their leaf if none is left."""
        growing = self._tree(e)
        if growing.rolling or growing.moved or growing.ended:
            self._close(e, [node for group in lost for node in growing.close(group.node)])
        else:
            self._close(e, growing.close_waiting())

    def _back_up(self, leaves: Mapping[int, int]) -> None:
        """Ends iterations that selected a known terminal node: each rollout would end there."""
        for e, number in leaves.items():
            self._tree(e).ended = [number] * self.config.num_rollouts
        self._end_iterations(list(leaves))

    def _end_iterations(self, slots: Sequence[int]) -> None:
        """Backs up the returns of trees whose rollouts have ended, and stores their iterations."""
        if not slots:
            return
        ended = {e: self._tree(e).ended for e in slots}
        for k in range(max(map(len, ended.values()))):
            changes = tree.Changes.none_of(self._trees)
            for e, numbers in ended.items():
                if k < len(numbers):
                    changes.leaf[e] = numbers[k]
                    changes.outcome[e] = self._tree(e).nodes[numbers[k]].trajectory.outcome
            self._trees = tree.advance(self._trees, changes)
        for e in slots:
            self.store.append(self._tree(e).finish_iteration())
            self._on_iteration()
        for e in slots:
            self._finish_if_complete(e)

    def _finish_if_complete(self, e: int) -> None:
        if self._tree(e).iteration >= self.config.num_iterations:
            self._retire(e, None)

    def _retire(self, e: int, error: str | None) -> None:
        """Ends a tree; its finished iterations are kept, also after an error."""
        growing = self._tree(e)
        self.store.finish(growing.task.task_id, error=error, failures=growing.failures)
        self.pool.release(growing.handles)
        self._slots[e] = None


def _shares(groups: Sequence[RolloutGroup], proposals: Sequence[Proposal]) -> list[_Share]:
    """Divides the turns of a tree between its rollouts, in order."""
    turns = iter(proposals)
    return [(group, list(itertools.islice(turns, group.count))) for group in groups]


def _wait_again(growing: GrowingTree, node: int, count: int) -> None:
    """Has rollouts whose environment failed wait at their node for other turns."""
    there = next((group for group in growing.rolling if group.node == node), None)
    if there is None:
        growing.rolling.append(RolloutGroup(node, count))
    else:
        there.count += count
