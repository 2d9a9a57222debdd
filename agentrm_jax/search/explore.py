"""Exploration: Monte-Carlo tree search for many tasks at once (paper section 3.2).

A turn of the loop (`search.turns`) serves all trees that wait, whatever their phase: trees that
expand ask for k turns, trees that roll out ask for one, and all are decoded together. One jitted
call updates all trees. A finished tree makes room for the next task.

A failed environment costs one candidate; if all candidates of a node fail, turns are sampled again.
A node without an open child is closed to selection; a tree ends early only if its root is closed.
"""

from __future__ import annotations

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
from agentrm_jax.search.environments import act, bring_environments
from agentrm_jax.search.growing import GrowingTree, Node
from agentrm_jax.search.search_config import SearchConfig
from agentrm_jax.search.selection import UCB, SelectionRule, check_rule, name_of_rule
from agentrm_jax.search.tasks import checked_tasks
from agentrm_jax.search.tree import NONE
from agentrm_jax.search.tree_search import TreeSearch
from agentrm_jax.search.tree_sinks import TreeSink, grown_trees
from agentrm_jax.search.turns import ATTEMPTS, run_turns

_UCB = UCB()


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
      policy: A policy, or a function `(state, n, seed) -> texts`; `FunctionPolicy` gives such a
        function another seed than 0.
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

    def run(self, tasks: Sequence[Task], stored: Mapping[str, TreeRecord]) -> None:
        """Explores every task whose tree in `stored` is absent or not finished.

        Args:
          tasks: The tasks.
          stored: Trees that the store holds, by task id; unfinished ones are resumed.
        """
        waiting = [t for t in tasks if not (t.task_id in stored and stored[t.task_id].finished)]
        if not waiting:
            return
        self._stored = stored
        # Shapes follow from all tasks, so that nothing is compiled again on resuming.
        longest = max(task.max_steps for task in tasks)
        width = self.config.expansion_width
        # An iteration adds the children of one node and one rollout; a node has at most one child
        # from a rollout next to the children of its expansion.
        self._prepare(
            waiting,
            num_slots=min(self.config.concurrency, len(tasks)),
            num_nodes=1 + self.config.num_iterations * (width + longest),
            width=width + 1,
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
            self._slots[e] = GrowingTree(task=task, nodes=[root])
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
            growing.rolling = growing.rollout_leaf = leaf
        self._require_room(e)

    def _require_room(self, e: int) -> None:
        """Ends a tree whose failed candidates have used up the nodes of its iterations."""
        growing = self._tree(e)
        needed = self.config.expansion_width + growing.task.max_steps
        if len(growing.nodes) + needed > self._trees.parent.shape[1] and (
            growing.closed or growing.failures
        ):
            self._retire(e, f"too many candidates failed, the last with: {growing.last_failure}")

    def play(self, answers: Sequence[tuple[int, list[Proposal]]]) -> Sequence[None]:
        """Moves the environments as the policy proposed, attaches the new nodes, backs up."""
        answered = dict(answers)
        for e in answered:
            self._tree(e).asked = False
        waiting = {e: self._tree(e).waiting for e in sorted(answered)}
        trees = {e: (self._tree(e), node) for e, node in waiting.items()}
        failures = bring_environments(
            self.pool, {e: each for e, each in trees.items() if each[0].rollout_handle is None}
        )
        for e, reason in failures.items():
            growing = self._tree(e)
            growing.fail(waiting[e], "", 1, "replay", reason)
            self._close(e, growing.close_waiting())
        groups = {e: answered[e] for e in waiting if e not in failures}
        expands = {e: self._tree(e).expanding is not None for e in groups}
        if any(expands.values()):
            self._expand({e: group for e, group in groups.items() if expands[e]})
        if not all(expands.values()):
            self._roll({e: group for e, group in groups.items() if not expands[e]})
        return ()

    def _expand(self, answered: Mapping[int, list[Proposal]]) -> None:
        """Attaches children to the waiting nodes."""
        nodes = {e: self._tree(e).waiting for e in answered}
        new = self._grow(answered)
        self._trees = tree.advance(self._trees, self._attachment(nodes, new, expands=True))
        for e in nodes:
            self._close(e, self._tree(e).end_expansion())

    def _roll(self, answered: Mapping[int, list[Proposal]]) -> None:
        """Takes one step of every rollout; the first one in a copy of the node's environment."""
        nodes = {e: self._tree(e).waiting for e in answered}
        requests: list[tuple[int, str, bool]] = []
        for e, [proposal] in answered.items():
            growing = self._tree(e)
            if growing.rollout_handle is None:
                requests.append((growing.handle(nodes[e]), proposal.action, True))
            else:
                requests.append((growing.rollout_handle, proposal.action, False))
        new: dict[int, list[int]] = {}
        ended: dict[int, int] = {}
        answers = act(self.pool, requests)
        for (e, [proposal]), answer in zip(answered.items(), answers, strict=True):
            growing = self._tree(e)
            if isinstance(answer, EnvironmentFailure):
                self._roll_failed(e, proposal, answer.reason)
                continue
            growing.attempt = 0
            growing.rollout_handle, transition = answer
            number = growing.add(nodes[e], proposal.as_step(transition), 1, None)
            growing.rolling, new[e] = number, [number]
            if transition.done:
                ended[e] = number
        changes = self._attachment({e: nodes[e] for e in new}, new, expands=False)
        self._trees = tree.advance(self._trees, changes)
        self._back_up(ended)

    def _roll_failed(self, e: int, proposal: Proposal, reason: str) -> None:
        """Samples the turn of a rollout again or, after `ATTEMPTS`, closes its leaf."""
        growing = self._tree(e)
        growing.fail(growing.waiting, proposal.action, 1, "rollout", reason)
        if growing.rollout_handle is not None:  # it acted in place and is lost
            self.pool.release([growing.rollout_handle])
            growing.rollout_handle = None
        growing.attempt += 1
        if growing.attempt == ATTEMPTS:
            self._close(e, growing.close_waiting())

    def _back_up(self, leaves: Mapping[int, int]) -> None:
        """Ends the iterations that reached these terminal nodes, and stores them."""
        if not leaves:
            return
        changes = tree.Changes.none_of(self._trees)
        for e, number in leaves.items():
            growing = self._tree(e)
            changes.leaf[e] = number
            changes.outcome[e] = growing.nodes[number].trajectory.outcome
            if growing.rollout_handle is not None:
                self.pool.release([growing.rollout_handle])
            self.store.append(growing.finish_iteration(number))
            self._on_iteration()
        self._trees = tree.advance(self._trees, changes)
        for e in leaves:
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
