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

import numpy as np

from agentrm_jax.agent.function import PolicyFunction, as_policy
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
    Question,
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
from agentrm_jax.search.tree_sinks import TreeSink, grown_trees
from agentrm_jax.search.turns import ATTEMPTS, TurnSearch, run_turns

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


class Explorer(TurnSearch[int, None]):
    """Grows the trees of a task list; its players are slots, each with at most one tree.

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
        self.policy, self.pool = policy, pool
        self.store, self.config = store, config
        self._on_iteration = on_iteration
        self._waiting: list[Task] = []
        self._stored: Mapping[str, TreeRecord] = {}
        self._slots: list[GrowingTree | None] = []

    def run(self, tasks: Sequence[Task], stored: Mapping[str, TreeRecord]) -> None:
        """Explores every task whose tree in `stored` is absent or not finished.

        Args:
          tasks: The tasks.
          stored: Trees that the store holds, by task id; unfinished ones are resumed.
        """
        waiting = [t for t in tasks if not (t.task_id in stored and stored[t.task_id].finished)]
        if not waiting:
            return
        self._waiting, self._stored = waiting[::-1], stored
        # Shapes follow from all tasks, so that nothing is compiled again on resuming.
        longest = max(task.max_steps for task in tasks)
        width = self.config.expansion_width
        self._slots = [None] * min(self.config.concurrency, len(tasks))
        # An iteration adds the children of one node and one rollout; a node has at most one child
        # from a rollout next to the children of its expansion.
        self._trees = tree.make_trees(
            len(self._slots), 1 + self.config.num_iterations * (width + longest), width + 1
        )
        for _ in run_turns(self.policy, self, len(self._slots)):
            pass

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._live())

    def overlaps(self, player: int) -> bool:
        return self.pool.elsewhere(self._tree(player).task)

    def close(self) -> None:
        for growing in self._live().values():
            self.pool.release(growing.handles)

    def _live(self) -> dict[int, GrowingTree]:
        return {e: growing for e, growing in enumerate(self._slots) if growing is not None}

    def _tree(self, e: int) -> GrowingTree:
        growing = self._slots[e]
        assert growing is not None
        return growing

    def begin(self, count: int) -> Sequence[None]:
        """Gives free slots the next tasks."""
        if count == 0:
            return ()
        free = [e for e, growing in enumerate(self._slots) if growing is None]
        tasks = [self._waiting.pop() for _ in range(count)]
        changes = tree.Changes.none_of(self._trees)
        changes.cleared[free[:count]] = True
        self._trees = tree.advance(self._trees, changes)
        for e, task, answer in zip(free, tasks, self.pool.reset(tasks), strict=False):
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

    def _select(self) -> None:
        """Walks down every tree that is between phases, until each needs the policy or is done.

        A walk to a known terminal node is a whole iteration. A walk to a visited node expands it
        and continues from there after the expansion.
        """
        while idle := {e: g for e, g in self._live().items() if g.walks}:
            chosen = np.asarray(tree.select(self._trees, self.config.selection))
            ended: dict[int, int] = {}
            for e, growing in idle.items():
                leaf = int(chosen[e])
                node = growing.nodes[leaf]
                if node.trajectory.done:
                    ended[e] = leaf
                    continue
                if leaf == 0 or node.visited:
                    growing.expanding = leaf
                else:
                    growing.rolling = growing.rollout_leaf = leaf
                self._require_room(e)
            self._back_up(ended)

    def _require_room(self, e: int) -> None:
        """Ends a tree whose failed candidates have used up the nodes of its iterations."""
        growing = self._tree(e)
        needed = self.config.expansion_width + growing.task.max_steps
        if len(growing.nodes) + needed > self._trees.parent.shape[1] and (
            growing.closed or growing.failures
        ):
            self._retire(e, f"too many candidates failed, the last with: {growing.last_failure}")

    def questions(self) -> list[tuple[int, Question]]:
        self._select()
        questions: list[tuple[int, Question]] = []
        for e, growing in self._live().items():
            if not growing.asked:
                growing.asked = True
                questions.append((e, growing.question(self.config.expansion_width)))
        return questions

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
        candidates: list[tuple[int, Proposal, int]] = []
        requests: list[tuple[int, str, bool]] = []
        for e, group in answered.items():
            growing = self._tree(e)
            for proposal, multiplicity in growing.merged(nodes[e], group, self.pool.action_key):
                candidates.append((e, proposal, multiplicity))
                requests.append((growing.handle(nodes[e]), proposal.action, True))
        new: dict[int, list[int]] = {e: [] for e in nodes}
        answers = act(self.pool, requests)
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
        self._attach(nodes, new, expands=True)
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
        self._attach({e: nodes[e] for e in new}, new, expands=False)
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

    def _close(self, e: int, closed: Sequence[int]) -> None:
        """Closes nodes to selection; ends the tree if its root is one of them."""
        growing = self._tree(e)
        if 0 in closed:
            self._retire(e, growing.last_failure)
        elif closed:
            self._trees = tree.close(self._trees, e, closed)

    def _attach(
        self, parents: Mapping[int, int], new: Mapping[int, list[int]], *, expands: bool
    ) -> None:
        """Attaches the new nodes of some trees to one node of each, on the device."""
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
        self._trees = tree.advance(self._trees, changes)

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
