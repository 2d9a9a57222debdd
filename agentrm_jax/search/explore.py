"""Exploration: Monte-Carlo tree search for many tasks at once (paper section 3.2).

A tick serves every live tree whatever its phase: trees that expand ask for k turns, trees that
roll out ask for one; all are decoded together, all environments step together, and one jitted call
updates all trees. A tree that is finished makes room for the next task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure, EnvPool, Policy, Proposal
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.trees import TreeRecord, TreeStore
from agentrm_jax.search import tree
from agentrm_jax.search.growing import GrowingTree, Node, as_step
from agentrm_jax.search.tree import NONE


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The search (paper section 3.2).

    Attributes:
      num_iterations: Iterations of each tree.
      expansion_width: Turns sampled when a node is expanded; equal actions are merged.
      exploration: c of the upper confidence bound V + c sqrt(ln N_parent / N).
      num_slots: Trees that grow at the same time. It decides speed, never results.
    """

    num_iterations: int = 40
    expansion_width: int = 5
    exploration: float = 0.5
    num_slots: int = 64

    def __post_init__(self) -> None:
        for name in ("num_iterations", "expansion_width", "num_slots"):
            if getattr(self, name) < 1:
                raise UserError(f"search.{name}: must be at least 1, not {getattr(self, name)}")
        if self.exploration < 0:
            raise UserError(f"search.exploration: must not be negative, not {self.exploration}")


class Explorer:
    """Grows the trees of a task list into a store.

    Args:
      policy: Proposes turns.
      pool: Environments.
      store: Where finished iterations go.
      config: The search.
      on_iteration: Called after each iteration is stored.
    """

    def __init__(
        self,
        policy: Policy,
        pool: EnvPool,
        store: TreeStore,
        config: SearchConfig,
        on_iteration: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self.pool, self.store, self.config = policy, pool, store, config
        self._on_iteration = on_iteration
        self._slots: list[GrowingTree | None] = []

    def run(self, tasks: Sequence[Task], stored: Mapping[str, TreeRecord]) -> None:
        """Explores every task that `stored` does not hold finished; begun trees go on."""
        waiting = [t for t in tasks if not (t.task_id in stored and stored[t.task_id].finished)]
        if not waiting:
            return
        # Slots and nodes do not depend on what is left, so that nothing compiles anew on resuming.
        longest = max(task.max_steps for task in tasks)
        width = self.config.expansion_width
        self._slots = [None] * min(self.config.num_slots, len(tasks))
        # An iteration adds the children of one node and one rollout; a node has at most one child
        # from a rollout beside its k own.
        self._trees = tree.make_trees(
            len(self._slots), 1 + self.config.num_iterations * (width + longest), width + 1
        )
        waiting.reverse()
        while True:
            self._fill(waiting, stored)
            self._select()
            if any(self._slots):
                self._tick()
            elif not waiting:
                return

    def _live(self) -> dict[int, GrowingTree]:
        return {e: growing for e, growing in enumerate(self._slots) if growing is not None}

    def _fill(self, waiting: list[Task], stored: Mapping[str, TreeRecord]) -> None:
        """Gives free slots the next tasks."""
        free = [e for e, growing in enumerate(self._slots) if growing is None]
        tasks = [waiting.pop() for _ in range(min(len(free), len(waiting)))]
        if not tasks:
            return
        cleared = np.zeros(len(self._slots), bool)
        cleared[free[: len(tasks)]] = True
        self._trees = tree.clear(self._trees, jnp.asarray(cleared))
        for e, task, answer in zip(free, tasks, self.pool.reset(tasks), strict=False):
            record = stored.get(task.task_id)
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

    def _restore(self, e: int, record: TreeRecord) -> None:
        """Brings a new slot to where the stored iterations left the tree."""
        growing = self._slots[e]
        assert growing is not None
        for iteration in record.iterations:
            growing.restore(iteration)
        _, M, W = self._trees.children.shape
        arrays = tree.from_iterations(record.iterations, M, W)
        self._trees = tree.put(self._trees, e, arrays)
        self._finish_if_complete(e)

    def _select(self) -> None:
        """Walks down every tree that is between phases, until each needs the policy or is done.

        A walk that ends in a known terminal node is an iteration of its own; a walk that ends in
        a visited node expands it, and goes on from there after the expansion.
        """
        while True:
            idle = {e: g for e, g in self._live().items() if g.active is None}
            if not idle:
                return
            chosen = np.asarray(tree.select(self._trees, jnp.float32(self.config.exploration)))
            ended: dict[int, int] = {}
            for e, growing in idle.items():
                leaf = int(chosen[e])
                node = growing.nodes[leaf]
                if node.trajectory.done:
                    ended[e] = leaf
                elif leaf == 0 or node.visited:
                    growing.expanding = leaf
                else:
                    growing.rolling = leaf
            if not ended:
                return
            self._back_up(ended)

    def _tick(self) -> None:
        """Asks the policy, steps the environments, attaches the new nodes, backs up."""
        live = self._live()
        self._bring_environments({e: g.active for e, g in live.items() if g.active is not None})
        live = self._live()  # an environment that failed has ended its tree
        expanding = {e: g for e, g in live.items() if g.expanding is not None}
        rolling = {e: g for e, g in live.items() if g.expanding is None}
        expansions = self._propose(expanding, "expand", self.config.expansion_width)
        rollouts = self._propose(rolling, "rollout", 1)
        self._expand(expanding, expansions)
        self._roll(rolling, rollouts)

    def _propose(
        self, growing: Mapping[int, GrowingTree], purpose: str, n: int
    ) -> dict[int, list[Proposal]]:
        requests = [
            (g.nodes[g.active].trajectory, f"{purpose}/{g.active}")
            for g in growing.values()
            if g.active is not None
        ]
        return dict(zip(growing, self.policy.propose(requests, n), strict=True)) if requests else {}

    def _expand(
        self, trees: Mapping[int, GrowingTree], proposals: Mapping[int, list[Proposal]]
    ) -> None:
        asked: list[tuple[int, Proposal, int]] = []
        requests: list[tuple[int, str]] = []
        for e, growing in trees.items():
            handle = growing.nodes[growing.expanding or 0].handle
            assert handle is not None
            for proposal, multiplicity in growing.merged(growing.expanding or 0, proposals[e]):
                asked.append((e, proposal, multiplicity))
                requests.append((handle, proposal.action))
        new: dict[int, list[int]] = {e: [] for e in trees}
        parents = {e: growing.expanding or 0 for e, growing in trees.items()}
        for (e, proposal, multiplicity), answer in zip(
            asked, self.pool.branch(requests), strict=True
        ):
            growing = self._slots[e]
            if growing is None:
                continue
            if isinstance(answer, EnvironmentFailure):
                self._retire(e, answer.reason)
                continue
            handle, transition = answer
            if transition.done:
                self.pool.release([handle])
                handle = None
            step = as_step(proposal, transition)
            new[e].append(growing.add(parents[e], step, multiplicity, handle))
        for growing in trees.values():
            growing.expanding = None
        self._attach(parents, new, expands=True)

    def _roll(
        self, trees: Mapping[int, GrowingTree], proposals: Mapping[int, list[Proposal]]
    ) -> None:
        """One step of every rollout. The first one leaves the node's own environment as it is."""
        first = [e for e, g in trees.items() if g.rollout_handle is None]
        later = [e for e in trees if e not in first]
        branched = self.pool.branch(
            [(_handle(trees[e]), proposals[e][0].action) for e in first]
        ) if first else []  # fmt: skip
        stepped = self.pool.step(
            [(trees[e].rollout_handle or 0, proposals[e][0].action) for e in later]
        ) if later else []  # fmt: skip
        answers = dict(zip(first, branched, strict=True)) | {
            e: a if isinstance(a, EnvironmentFailure) else (trees[e].rollout_handle, a)
            for e, a in zip(later, stepped, strict=True)
        }
        new: dict[int, list[int]] = {}
        parents = {e: growing.rolling or 0 for e, growing in trees.items()}
        ended: dict[int, int] = {}
        for e, growing in trees.items():
            answer = answers[e]
            if isinstance(answer, EnvironmentFailure):
                self._retire(e, answer.reason)
                continue
            growing.rollout_handle, transition = answer
            step = as_step(proposals[e][0], transition)
            growing.rolling = growing.add(parents[e], step, 1, None)
            new[e] = [growing.rolling]
            if transition.done:
                ended[e] = growing.rolling
        self._attach({e: parents[e] for e in new}, new, expands=False)
        self._back_up(ended)

    def _attach(
        self, parents: Mapping[int, int], new: Mapping[int, list[int]], *, expands: bool
    ) -> None:
        if not parents:
            return
        E, _, W = self._trees.children.shape
        parent = np.full(E, NONE, np.int32)
        nodes, terminal = np.full((E, W), NONE, np.int32), np.zeros((E, W), bool)
        for e, number in parents.items():
            growing = self._slots[e]
            if growing is None:
                continue
            parent[e] = number
            nodes[e, : len(new[e])] = new[e]
            terminal[e, : len(new[e])] = [growing.nodes[n].trajectory.done for n in new[e]]
        self._trees = tree.attach(
            self._trees,
            jnp.asarray(parent),
            jnp.asarray(nodes),
            jnp.asarray(terminal),
            jnp.asarray((parent != NONE) & expands),
        )

    def _back_up(self, leaves: Mapping[int, int]) -> None:
        """Ends the iterations that reached these terminal nodes, and stores them."""
        if not leaves:
            return
        leaf = np.full(len(self._slots), NONE, np.int32)
        outcome = np.zeros(len(self._slots), np.float32)
        for e, number in leaves.items():
            growing = self._slots[e]
            assert growing is not None
            leaf[e], outcome[e] = number, growing.nodes[number].trajectory.outcome
            if growing.rollout_handle is not None:
                self.pool.release([growing.rollout_handle])
            self.store.append(growing.finish_iteration(number))
            self._on_iteration()
        self._trees = tree.backup(self._trees, jnp.asarray(leaf), jnp.asarray(outcome))
        for e in leaves:
            self._finish_if_complete(e)

    def _finish_if_complete(self, e: int) -> None:
        growing = self._slots[e]
        if growing is not None and growing.iteration >= self.config.num_iterations:
            self._retire(e, None)

    def _retire(self, e: int, error: str | None) -> None:
        """Ends a tree; its finished iterations are kept, also after an error."""
        growing = self._slots[e]
        assert growing is not None
        self.store.finish(growing.task.task_id, error=error)
        handles = [node.handle for node in growing.nodes] + [growing.rollout_handle]
        self.pool.release([handle for handle in handles if handle is not None])
        self._slots[e] = None

    def _bring_environments(self, needed: Mapping[int, int]) -> None:
        """Replays environments for nodes that have none: cached rollout steps, restored trees."""
        routes: dict[int, list[int]] = {}
        for e, number in needed.items():
            growing = self._slots[e]
            assert growing is not None
            if growing.rollout_handle is not None:
                continue
            path = list(growing.path(number))
            held = max(i for i, n in enumerate(path) if growing.nodes[n].handle is not None)
            if path[held:] != [number]:
                routes[e] = path[held:]
        current = {e: self._slots[e].nodes[route[0]].handle for e, route in routes.items()}  # type: ignore[union-attr]
        depth = 1
        while routes:
            slots = list(routes)
            requests = [
                (current[e], self._slots[e].nodes[routes[e][depth]].action)  # type: ignore[union-attr]
                for e in slots
            ]
            answers = self.pool.branch(requests) if depth == 1 else [
                a if isinstance(a, EnvironmentFailure) else (current[e], a)
                for e, a in zip(slots, self.pool.step(requests), strict=True)
            ]  # fmt: skip
            for e, answer in zip(slots, answers, strict=True):
                growing = self._slots[e]
                node = growing.nodes[routes[e][depth]]  # type: ignore[union-attr]
                if isinstance(answer, EnvironmentFailure):
                    self._retire(e, answer.reason)
                    del routes[e]
                    continue
                current[e], transition = answer
                if transition != node.trajectory.steps[-1].transition:
                    self.pool.release([current[e]])
                    self._retire(e, "a replayed step was answered otherwise than before")
                    del routes[e]
                elif depth == len(routes[e]) - 1:
                    node.handle = current[e]
                    del routes[e]
            depth += 1


def _handle(growing: GrowingTree) -> int:
    handle = growing.nodes[growing.rolling or 0].handle
    assert handle is not None
    return handle
