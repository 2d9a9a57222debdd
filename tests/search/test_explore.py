"""The batched explorer against a plain Python tree, and its store against interruptions."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from random_game import GamePolicy, GamePool, action_key, answer, draw, game

from agentrm_jax.agent.function import FunctionPolicy
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.trees import FILE, TreeStore, back_up
from agentrm_jax.search import explore as search
from agentrm_jax.search import tree
from agentrm_jax.search.explore import Explorer, SearchConfig
from agentrm_jax.search.selection import PUCT, UCB


@dataclasses.dataclass(eq=False)
class PlainNode:
    number: int
    parent: PlainNode | None
    trajectory: Trajectory
    children: list = dataclasses.field(default_factory=list)
    visits: int = 0
    total: np.float32 | int = 0
    expanded: bool = False
    closed: bool = False

    def open_children(self):
        return [child for child in self.children if not child.closed]


def plain_search(task, config: SearchConfig, policy, breaks=lambda task, actions: False):
    """One tree, one node at a time, as the paper describes it.

    An action that `breaks` costs itself; a node below which nothing is left is closed.
    """
    nodes = []

    def add(parent, proposal):
        actions = [s.action for s in parent.trajectory.steps] + [proposal.action]
        if breaks(task, actions):
            return None
        step = proposal.as_step(answer(task, actions))
        node = PlainNode(len(nodes), parent, parent.trajectory.extended(step))
        nodes.append(node)
        parent.children.append(node)
        return node

    def bound(node):
        if node.visits == 0:
            return math.inf
        spread = np.sqrt(np.log(np.float32(node.parent.visits)) / np.float32(node.visits))
        return (
            node.total / np.float32(node.visits) + np.float32(config.selection.exploration) * spread
        )

    def close(node):
        while node is not None and not node.open_children():
            node.closed = True
            node = node.parent

    def turns(node, count, again):
        """A turn for each of the rollouts in a node."""
        if count == config.num_rollouts:
            return propose(policy, [(node.trajectory, f"rollout/{node.number}{again}")], count)[0]
        names = [f"rollout/{node.number}" + (f"/{j}" if j else "") + again for j in range(count)]
        return [propose(policy, [(node.trajectory, name)], 1)[0][0] for name in names]

    def moved(rollouts):
        """One step of rollouts, a list of nodes, and the nodes of those that could not go on."""
        after = []
        for again in ("", "/again/1", "/again/2"):
            failed = []
            for node in dict.fromkeys(rollouts):
                for proposal in turns(node, rollouts.count(node), again):
                    key = action_key(task, proposal.action)
                    equal = [
                        child for child in node.children
                        if action_key(task, child.trajectory.steps[-1].action) == key
                    ]  # fmt: skip
                    child = equal[0] if equal else add(node, proposal)
                    (failed if child is None else after).append(child or node)
            rollouts = failed
        return after, rollouts

    def rolled(leaf):
        """The terminal nodes of the rollouts from a node; none if no rollout could go on."""
        rollouts, ended = [leaf] * config.num_rollouts, []
        while rollouts:
            ended += [node for node in rollouts if node.trajectory.done]
            going = [node for node in rollouts if not node.trajectory.done]
            rollouts, lost = moved(going)
            if rollouts or ended:
                for node in lost:
                    close(node)
        return sorted(ended, key=lambda node: node.number)

    root = PlainNode(0, None, Trajectory(task=task, first_observation=f"game {task.task_id}"))
    nodes.append(root)
    paths = []
    while len(paths) < config.num_iterations and not root.closed:
        node = root
        while True:
            while node.expanded and node.open_children() and not node.trajectory.done:
                node = max(node.open_children(), key=bound)
            if node.trajectory.done or (node.visits == 0 and node is not root):
                break
            known = {action_key(task, c.trajectory.steps[-1].action) for c in node.children}
            for attempt in range(3):
                again = f"/again/{attempt}" if attempt else ""
                question = (node.trajectory, f"expand/{node.number}{again}")
                [proposals] = propose(policy, [question], config.expansion_width)
                tried = set(known)
                for proposal in proposals:
                    key = action_key(task, proposal.action)
                    if key not in tried:
                        tried.add(key)
                        add(node, proposal)
                if node.open_children():
                    break
            node.expanded = True
            if not node.open_children():
                break
        ended = [] if node.expanded and not node.open_children() else rolled(node)
        if not ended:
            for child in node.children:
                child.closed = True
            close(node)
            continue
        backups = []
        for end in ended:
            outcome, path, node = end.trajectory.outcome, [], end
            while node is not None:
                node.visits += 1
                node.total += np.float32(outcome)
                path.append(node.number)
                node = node.parent
            backups.append((tuple(reversed(path)), outcome))
        paths.append(backups)
    return nodes, paths


def backed_up(record):
    return [[(b.path, b.outcome) for b in it.backups] for it in record.iterations]


CONFIG = SearchConfig(num_iterations=15, expansion_width=3, selection=UCB(), concurrency=4)
SEVERAL = dataclasses.replace(CONFIG, num_rollouts=4)


def explore(directory, tasks, config=CONFIG, *, pool=None, policy=None, store_type=TreeStore):
    stored = TreeStore.read(directory) if directory.exists() else {}
    store = store_type(directory)
    pool = pool or GamePool()
    explorer = Explorer(policy or GamePolicy(), pool, store, config)
    try:
        explorer.run(tasks, stored)
    finally:
        store.close()
    return TreeStore.read(directory), explorer, pool


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
@pytest.mark.parametrize("moves", ["NESW", "N", "N-", "-"])
def test_batched_trees_equal_the_plain_tree(tmp_path, moves, config):
    """More tasks than slots; also where all turns merge (`N`) and where some have no action."""
    tasks = [game(i) for i in range(11)]
    records, _, pool = explore(tmp_path / "trees", tasks, config, policy=GamePolicy(moves))
    assert list(records) == [task.task_id for task in tasks]
    assert pool.episodes == {}  # every environment was given back
    for task in tasks:
        nodes, paths = plain_search(task, config, GamePolicy(moves))
        record = records[task.task_id]
        assert record.finished
        assert record.error is None
        assert backed_up(record) == paths
        found = {n.node: n for it in record.iterations for n in it.nodes}
        assert sorted(found) == list(range(1, len(nodes)))
        for node in nodes[1:]:
            assert found[node.number].parent == node.parent.number
            assert found[node.number].step == node.trajectory.steps[-1]


def test_merged_turns_are_counted(tmp_path):
    """Multiplicities of an expansion sum to the turns that were no known child."""
    records, _, _ = explore(tmp_path / "trees", [game(0)], policy=GamePolicy("NE"))
    first = records["game/0"].iterations[0].nodes
    children = [node for node in first if node.parent == 0]
    assert sum(node.multiplicity for node in children) == CONFIG.expansion_width
    assert len({action_key(game(0), node.step.action) for node in children}) == len(children) < 3


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
def test_stored_iterations_rebuild_the_arrays(tmp_path, config):
    """The arrays on the device equal those rebuilt from the records, field by field."""
    tasks = [game(i) for i in range(4)]
    records, explorer, _ = explore(tmp_path / "trees", tasks, config)
    _, num_nodes, width = explorer._trees.children.shape
    for slot, task in enumerate(tasks):
        rebuilt = tree.from_iterations(records[task.task_id].iterations, num_nodes, width)
        for name, value in rebuilt.items():
            np.testing.assert_array_equal(getattr(explorer._trees, name)[slot], value, name)


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
def test_searched_arrays_equal_the_backup_of_the_stored_iterations(tmp_path, config):
    """To the bit if returns are added up in float32; labels add up in float64."""
    tasks = [game(i) for i in range(4)]
    records, explorer, _ = explore(tmp_path / "trees", tasks, config)
    trees = explorer._trees
    for row, task in enumerate(tasks):
        record = records[task.task_id]
        M = record.num_nodes
        for dtype, tolerance in ((np.float32, 0.0), (np.float64, 1e-6)):
            visits, sums = back_up(record.iterations, M, dtype)
            assert visits[0] == config.num_rollouts * len(record.iterations)
            np.testing.assert_array_equal(trees.visit_count[row, :M], visits)
            np.testing.assert_allclose(trees.value_sum[row, :M], sums, rtol=tolerance, atol=0)
        for both, label_sums in zip(record.backed_up(), (visits, sums), strict=True):
            np.testing.assert_array_equal(both, label_sums)
        assert not np.any(trees.visit_count[row, M:])


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
def test_killed_anywhere_and_resumed_ends_with_the_same_trees(tmp_path, config):
    """At every record boundary, and in the middle of every record."""
    config = dataclasses.replace(config, num_iterations=6, concurrency=2)
    tasks = [game(i) for i in range(3)]
    whole, _, _ = explore(tmp_path / "whole", tasks, config)
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 * (6 + 2)
    for kept in range(len(lines) + 1):
        torn = lines[kept][: len(lines[kept]) // 2] if kept % 2 and kept < len(lines) else b""
        directory = tmp_path / str(kept)
        directory.mkdir()
        (directory / FILE).write_bytes(b"".join(lines[:kept]) + torn)
        policy = GamePolicy()
        resumed, _, pool = explore(directory, tasks, config, policy=policy)
        assert list(resumed.items()) == list(whole.items())
        assert pool.episodes == {}
        assert len((directory / FILE).read_bytes().splitlines()) == len(lines)  # nothing twice
    assert policy.asked == []  # all was there


def keep_iterations(directory, n):
    """Cuts every stored tree back to its first n iterations."""
    lines = (directory / FILE).read_text().splitlines(keepends=True)
    kept = [json.loads(line)["record"] for line in lines]
    (directory / FILE).write_text(
        "".join(
            line
            for line, record in zip(lines, kept, strict=True)
            if record["kind"] == "begin" or record.get("iteration", n) < n
        )
    )


def test_replay_that_differs_ends_its_tree(tmp_path):
    tasks = [game(i) for i in range(3)]
    whole, _, _ = explore(tmp_path / "trees", tasks)
    keep_iterations(tmp_path / "trees", 3)

    class Other(GamePool):
        def branch(self, requests):
            out = super().branch(requests)
            tasks = [self.episodes[handle][0].task_id for handle, _ in requests]
            return [
                (handle, dataclasses.replace(transition, observation="something else"))
                if task_id == "game/1"
                else (handle, transition)
                for task_id, (handle, transition) in zip(tasks, out, strict=True)
            ]

    records, _, pool = explore(tmp_path / "trees", tasks, pool=Other())
    assert records["game/1"].error == "a replayed step was answered otherwise than before"
    kept = records["game/1"].iterations
    assert len(kept) >= 3
    assert kept == whole["game/1"].iterations[: len(kept)]
    assert pool.episodes == {}
    for other in ("game/0", "game/2"):
        assert records[other] == whole[other]


@pytest.mark.parametrize("depth", [1, 2])
def test_replay_that_breaks_ends_its_tree(tmp_path, depth):
    """Whether the first replayed step breaks or, in our own copy, the second."""
    tasks = [game(i) for i in range(3)]
    whole, _, _ = explore(tmp_path / "trees", tasks)
    keep_iterations(tmp_path / "trees", 3)
    pool = GamePool(lambda task, actions: task.task_id == "game/1" and len(actions) == depth)
    records, _, _ = explore(tmp_path / "trees", tasks, pool=pool)
    assert records["game/1"].error == "the game broke"
    assert pool.episodes == {}
    for other in ("game/0", "game/2"):
        assert records[other] == whole[other]


def test_rollouts_whose_replay_breaks_leave_the_others_alone(tmp_path):
    """No step succeeds twice: a rollout that fails after others parted from it is lost."""
    seen = set()

    def breaks(task, actions):
        once = (task.task_id, *(action_key(task, action) for action in actions))
        found = once in seen or (len(actions) > 2 and draw("breaks", *once) < 0.3)
        seen.add(once)
        return found

    pool = GamePool(breaks)
    records, _, _ = explore(tmp_path / "trees", [game(i) for i in range(6)], SEVERAL, pool=pool)
    assert pool.episodes == {}
    fewer = 0
    for record in records.values():
        visited = {0}
        for iteration in record.iterations:
            paths = [backup.path for backup in iteration.backups]
            leaf = next((node for node in paths[0] if node not in visited), paths[0][-1])
            assert all(leaf in path for path in paths)  # all began in the selected child
            assert 1 <= len(paths) <= SEVERAL.num_rollouts
            fewer += len(paths) < SEVERAL.num_rollouts
            visited.update(*paths)
    assert fewer
    assert {failure.purpose for record in records.values() for failure in record.failures} >= {
        "rollout", "replay"
    }  # fmt: skip


def test_slots_do_not_change_trees(tmp_path):
    tasks = [game(i) for i in range(6)]
    one, _, _ = explore(tmp_path / "one", tasks, dataclasses.replace(CONFIG, concurrency=1))
    all_, _, _ = explore(tmp_path / "all", tasks, dataclasses.replace(CONFIG, concurrency=6))
    assert one == all_


def test_a_question_has_a_higher_rank_the_further_its_tree_is(tmp_path):
    class Ranks(GamePolicy):
        def submit(self, questions):
            for state, _, _, rank in questions:
                ranks.setdefault(state.task.task_id, []).append(rank)
            return super().submit(questions)

    ranks = {}
    explore(tmp_path, [game(i) for i in range(6)], policy=Ranks())
    assert len(ranks) == 6
    for found in ranks.values():
        assert found == sorted(set(found))
        assert found[0] == 0
        assert {int(rank) for rank in found} <= set(range(CONFIG.num_iterations))


BREAKS = {
    "reset": lambda actions: actions == (),
    "expand": lambda actions: len(actions) == 1 and actions[0].endswith(("N", "n")),
    "later": lambda actions: len(actions) >= 2,
    "sometimes": lambda actions: len(actions) > 0 and draw("breaks", *actions) < 0.4,
    "rollout": lambda actions: len(actions) >= 3 and draw("breaks", *actions) < 0.3,
    "everything": lambda actions: len(actions) > 0,
}
CONSIDERED = {
    when: lambda actions, when=when: BREAKS[when](tuple(action_key(game(0), a) for a in actions))
    for when in BREAKS
}
"""Actions with an equal key break alike."""


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
@pytest.mark.parametrize("when", BREAKS)
def test_a_broken_environment_costs_its_candidate_only(tmp_path, when, config):
    """The other candidates, iterations and trees are those of a plain tree with the same breaks."""
    tasks = [game(i) for i in range(5)]
    broken = {tasks[2].task_id, tasks[3].task_id}

    def breaks(task, actions):
        return task.task_id in broken and CONSIDERED[when](actions)

    pool = GamePool(breaks)
    records, _, _ = explore(tmp_path / "trees", tasks, config, pool=pool)
    assert pool.episodes == {}
    for task in tasks:
        record = records[task.task_id]
        assert record.finished
        if when == "reset" and task.task_id in broken:
            assert (record.iterations, record.error) == ((), "the game broke")
            continue
        nodes, paths = plain_search(task, config, GamePolicy(), breaks)
        assert backed_up(record) == paths
        stored = {number: node.step for number, node in record.nodes.items()}
        assert stored == {n.number: n.trajectory.steps[-1] for n in nodes[1:] if n.number in stored}
        if nodes[0].closed:
            assert record.error == "the game broke"
        else:
            assert (record.error, len(paths)) == (None, CONFIG.num_iterations)
        if task.task_id not in broken:
            assert record.failures == []
        elif when != "rollout":
            assert record.failures


def test_breaks_are_recorded_and_the_tree_goes_on(tmp_path):
    """Most of the five trees get all their iterations although one in four actions breaks."""
    pool = GamePool(lambda task, actions: bool(actions) and CONSIDERED["sometimes"](actions))
    records, _, _ = explore(tmp_path / "trees", [game(i) for i in range(5)], pool=pool)
    whole = [r for r in records.values() if r.error is None]
    assert len(whole) >= 3
    assert all(len(r.iterations) == CONFIG.num_iterations for r in whole)
    found = [failure for record in records.values() for failure in record.failures]
    assert {failure.purpose for failure in found} >= {"expand", "rollout"}
    assert all(failure.reason == "the game broke" for failure in found)


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
def test_killed_anywhere_with_breaks_and_resumed_ends_with_the_same_trees(tmp_path, config):
    """Failures, closed nodes and the numbers of later nodes are restored too."""
    config = dataclasses.replace(config, num_iterations=8, concurrency=2)
    tasks = [game(i) for i in range(4)]

    def breaking():
        return GamePool(lambda task, actions: bool(actions) and CONSIDERED["sometimes"](actions))

    whole, _, _ = explore(tmp_path / "whole", tasks, config, pool=breaking())
    assert any(iteration.closed for tree in whole.values() for iteration in tree.iterations)
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        directory = tmp_path / str(kept)
        directory.mkdir()
        (directory / FILE).write_bytes(b"".join(lines[:kept]))
        resumed, _, pool = explore(directory, tasks, config, pool=breaking())
        assert resumed == whole
        assert pool.episodes == {}


@pytest.mark.parametrize("config", [CONFIG, SEVERAL])
def test_arrays_with_closed_nodes_are_rebuilt_from_the_records(tmp_path, config):
    tasks = [game(i) for i in range(4)]
    pool = GamePool(lambda task, actions: bool(actions) and CONSIDERED["sometimes"](actions))
    records, explorer, _ = explore(tmp_path / "trees", tasks, config, pool=pool)
    _, num_nodes, width = explorer._trees.children.shape
    compared = 0
    for slot, task in enumerate(tasks):
        record = records[task.task_id]
        if record.error is not None or record.last_failures:
            continue
        rebuilt = tree.from_iterations(record.iterations, num_nodes, width)
        for name, value in rebuilt.items():
            np.testing.assert_array_equal(getattr(explorer._trees, name)[slot], value, name)
        compared += any(iteration.closed for iteration in record.iterations)
    assert compared


def test_a_policy_that_gives_too_few_turns_is_an_error_and_no_endless_loop(tmp_path):
    class Silent(GamePolicy):
        def collect(self):
            return [(ticket, []) for ticket, _ in super().collect()]

    with pytest.raises(UserError, match=r"must propose 3 turns for task game/0 \(got 0\)"):
        explore(tmp_path / "trees", [game(0)], policy=Silent())


def test_nothing_to_do(tmp_path):
    assert explore(tmp_path / "trees", [])[0] == {}


def test_exploring_in_memory_gives_the_stored_trees(tmp_path):
    """With `store` they are kept and resumed; a finished store asks for nothing."""
    tasks = [game(i) for i in range(5)]
    expected, _, _ = explore(tmp_path / "explorer", tasks)
    sizes = {"num_iterations": 15, "expansion_width": 3, "concurrency": 4}
    pool = GamePool()
    in_memory = search.explore(GamePolicy(), pool, tasks, **sizes)
    assert in_memory == [expected[task.task_id] for task in tasks]
    assert pool.episodes == {}
    store = tmp_path / "store"
    assert search.explore(GamePolicy(), GamePool(), tasks, **sizes, store=store) == in_memory
    keep_iterations(store, 4)
    assert search.explore(GamePolicy(), GamePool(), tasks, **sizes, store=str(store)) == in_memory
    policy = GamePolicy()
    assert search.explore(policy, GamePool(), tasks[2:], **sizes, store=store) == in_memory[2:]
    assert policy.asked == []


def test_exploring_with_a_function(tmp_path):
    def policy(state, n, seed):
        return [f"Action: go {'NESW'[(seed + k) % 4]}" for k in range(n)]

    def run(seed):
        seeded = FunctionPolicy(policy, seed=seed)
        return search.explore(seeded, GamePool(), [game(0)], num_iterations=6)

    [tree], again, other = run(0), run(0), run(1)
    assert len(tree.iterations) == 6
    assert [tree] == again != other
    with pytest.raises(UserError, match="num_iterations must be at least 1"):
        search.explore(policy, GamePool(), [game(0)], num_iterations=0)


def test_a_store_is_resumed_with_the_same_settings_and_tasks_only(tmp_path):
    def run(tasks, **sizes):
        return search.explore(
            GamePolicy(), GamePool(), tasks, store=tmp_path, **{"num_iterations": 3, **sizes}
        )

    before = run([game(0)])
    for name, value in (
        ("num_iterations", 4),
        ("expansion_width", 2),
        ("selection", UCB(exploration=1.0)),
        ("selection", PUCT()),
        ("selection", lambda children: children.prior),
    ):
        with pytest.raises(
            UserError,
            match=rf"holds trees with (other {name}|{name} = .* \(got .*\)); choose another",
        ):
            run([game(0)], **{name: value})
    with pytest.raises(UserError, match="holds the tree of another task with the id game/0"):
        run([game(0, max_steps=3)])
    assert run([game(0)], concurrency=2) == before
    assert run([game(0), game(1)])[:1] == before


def test_a_task_that_is_given_twice_is_refused():
    tasks = [game(0), game(1), game(0)]
    with pytest.raises(UserError, match=r"task_id must be unique \(got game/0 twice\)"):
        search.explore(GamePolicy(), GamePool(), tasks)


def test_environments_are_released_after_an_error():
    def policy(state, n, seed):
        if len(state.steps) == 2:
            raise ValueError("no connection")
        return ["Action: go N"] * n

    pool = GamePool()
    with pytest.raises(ValueError, match="no connection"):
        search.explore(policy, pool, [game(0), game(1)])
    assert pool.episodes == {}
