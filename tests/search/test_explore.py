"""The batched explorer against a plain Python tree, and its store against interruptions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from random_game import GamePolicy, GamePool, answer, game

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.trees import IterationRecord, TreeStore
from agentrm_jax.search import tree
from agentrm_jax.search.explore import Explorer, SearchConfig
from agentrm_jax.search.growing import as_step, merge_key


@dataclasses.dataclass
class PlainNode:
    number: int
    parent: PlainNode | None
    trajectory: Trajectory
    children: list = dataclasses.field(default_factory=list)
    visits: int = 0
    total: np.float32 = np.float32(0)
    expanded: bool = False


def plain_search(task, config: SearchConfig):
    """One tree, one node at a time, as the paper describes it."""
    policy, nodes = GamePolicy(), []

    def add(parent, proposal):
        actions = [s.action for s in parent.trajectory.steps] + [proposal.action]
        step = as_step(proposal, answer(task, actions))
        node = PlainNode(len(nodes), parent, parent.trajectory.extended(step))
        nodes.append(node)
        parent.children.append(node)
        return node

    def bound(node):
        if node.visits == 0:
            return math.inf
        spread = np.sqrt(np.log(np.float32(node.parent.visits)) / np.float32(node.visits))
        return node.total / np.float32(node.visits) + np.float32(config.exploration) * spread

    root = PlainNode(0, None, Trajectory(task=task, first_observation=f"game {task.task_id}"))
    nodes.append(root)
    paths = []
    for _ in range(config.num_iterations):
        node = root
        while True:
            while node.expanded and node.children and not node.trajectory.done:
                node = max(node.children, key=bound)
            if node.trajectory.done or (node.visits == 0 and node is not root):
                break
            [proposals] = policy.propose(
                [(node.trajectory, f"expand/{node.number}")], config.expansion_width
            )
            for proposal in proposals:
                known = {merge_key(c.trajectory.steps[-1].action) for c in node.children}
                if merge_key(proposal.action) not in known:
                    add(node, proposal)
            node.expanded = True
        while not node.trajectory.done:
            [[proposal]] = policy.propose([(node.trajectory, f"rollout/{node.number}")], 1)
            node = add(node, proposal)
        outcome, path = node.trajectory.outcome, []
        while node is not None:
            node.visits += 1
            node.total += np.float32(outcome)
            path.append(node.number)
            node = node.parent
        paths.append((tuple(reversed(path)), outcome))
    return nodes, paths


CONFIG = SearchConfig(num_iterations=15, expansion_width=3, exploration=0.5, num_slots=4)


def explore(directory, tasks, config=CONFIG, pool=None, store_type=TreeStore):
    stored = TreeStore.read(directory) if directory.exists() else {}
    store = store_type(directory)
    pool = pool or GamePool()
    explorer = Explorer(GamePolicy(), pool, store, config)
    try:
        explorer.run(tasks, stored)
    finally:
        store.close()
    return TreeStore.read(directory), explorer, pool


def test_batched_trees_equal_the_plain_tree(tmp_path):
    tasks = [game(i) for i in range(11)]  # more than slots
    records, _, pool = explore(tmp_path / "trees", tasks)
    assert set(records) == {task.task_id for task in tasks}
    assert pool.episodes == {}  # every environment was given back
    for task in tasks:
        nodes, paths = plain_search(task, CONFIG)
        record = records[task.task_id]
        assert record.finished
        assert record.error is None
        assert [(it.path, it.outcome) for it in record.iterations] == paths
        found = {n.node: n for it in record.iterations for n in it.nodes}
        assert sorted(found) == list(range(1, len(nodes)))
        for node in nodes[1:]:
            assert found[node.number].parent == node.parent.number
            assert found[node.number].step == node.trajectory.steps[-1]


def test_stored_iterations_rebuild_the_arrays(tmp_path):
    """The arrays on the device equal those rebuilt from the records, field by field."""
    tasks = [game(i) for i in range(4)]
    records, explorer, _ = explore(tmp_path / "trees", tasks)
    _, num_nodes, width = explorer._trees.children.shape
    for slot, task in enumerate(tasks):
        rebuilt = tree.from_iterations(records[task.task_id].iterations, num_nodes, width)
        for name, value in rebuilt.items():
            np.testing.assert_array_equal(getattr(explorer._trees, name)[slot], value, name)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 7, 20, 43])
def test_interrupted_and_resumed_ends_with_the_same_trees(tmp_path, after):
    tasks = [game(i) for i in range(7)]
    whole, _, _ = explore(tmp_path / "whole", tasks)

    class Stopping(TreeStore):
        left = after

        def append(self, iteration: IterationRecord) -> None:
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            super().append(iteration)

    with pytest.raises(Interrupted):
        explore(tmp_path / "parts", tasks, store_type=Stopping)
    resumed, _, _ = explore(tmp_path / "parts", tasks)
    assert resumed == whole


def test_slots_do_not_change_trees(tmp_path):
    tasks = [game(i) for i in range(6)]
    one, _, _ = explore(tmp_path / "one", tasks, dataclasses.replace(CONFIG, num_slots=1))
    all_, _, _ = explore(tmp_path / "all", tasks, dataclasses.replace(CONFIG, num_slots=6))
    assert one == all_


def test_a_broken_environment_ends_its_tree_only(tmp_path):
    tasks = [game(i) for i in range(5)]
    broken = tasks[2].task_id
    records, _, pool = explore(tmp_path / "trees", tasks, pool=GamePool(frozenset({broken})))
    whole, _, _ = explore(tmp_path / "whole", tasks)
    assert records[broken].error == "the game broke"
    assert pool.episodes == {}
    for task in tasks:
        if task.task_id != broken:
            assert records[task.task_id] == whole[task.task_id]


def test_upper_confidence_bound_check_value():
    """V = 0.6, N = 10, N_parent = 100, c = 0.5 gives 0.9393."""
    bound = tree.upper_confidence_bound(0.6, 10, 100, 0.5)
    assert float(bound) == pytest.approx(0.6 + 0.5 * math.sqrt(math.log(100) / 10), abs=1e-6)
    assert float(bound) == pytest.approx(0.9393, abs=1e-4)
    assert float(tree.upper_confidence_bound(0.0, 0, 100, 0.5)) == math.inf
