"""Guided tree search against a plain Python tree, one task and one node at a time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import random_game
from game_scores import GameScorer, coarse, sometimes_undecided, undecided
from random_game import GamePolicy, GamePool, action_key, answer, draw, game

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.search.guided_mcts import GuidedMCTS
from agentrm_jax.search.selection import PUCT, UCB

TASKS = [game(i) for i in range(7)]
CONFIG = GuidedMCTS(num_iterations=8, expansion_width=3, concurrency=4)


class PlainTree:
    """A tree as a dictionary of dictionaries, with the costs of its search."""

    def __init__(self, task, config, score, breaks, policy) -> None:
        self.task, self.config, self.score, self.breaks = task, config, score, breaks
        self.policy = policy
        self.tokens, self.failed = 0, []
        self.nodes = {}
        self.add(None, Trajectory(task=task, first_observation=f"game {task.task_id}"))

    def add(self, parent, state) -> int:
        number = len(self.nodes)
        self.nodes[number] = {
            "parent": parent, "state": state, "children": [], "visits": 0, "closed": False,
            "total": np.float32(0), "score": math.nan,
        }  # fmt: skip
        return number

    def open_children(self, number):
        return [c for c in self.nodes[number]["children"] if not self.nodes[c]["closed"]]

    def expand(self, number) -> list[int]:
        """Samples turns until one of them can act, three times at most."""
        node, again = self.nodes[number], ""
        for attempt in range(3):
            state = node["state"]
            [proposals] = propose(
                self.policy, [(state, f"expand/{number}{again}")], self.config.expansion_width
            )
            tried = set()
            for proposal in proposals:
                self.tokens += len(proposal.log_probs)
                key = action_key(self.task, proposal.action)
                if key in tried:
                    continue
                tried.add(key)
                actions = [step.action for step in state.steps] + [proposal.action]
                if self.breaks(self.task, actions):
                    self.failed.append((number, proposal.action))
                    continue
                step = proposal.as_step(answer(self.task, actions))
                node["children"].append(self.add(number, state.extended(step)))
            if node["children"]:
                break
            again = f"/again/{attempt + 1}"
        for child in node["children"]:
            own = self.nodes[child]
            own["score"] = self.score(own["state"])
            own["visits"] = 1
            own["total"] = np.float32(self.order(child))
        if not node["children"]:
            while number is not None and not self.open_children(number):
                self.nodes[number]["closed"] = True
                number = self.nodes[number]["parent"]
        return node["children"]

    def order(self, number):
        score = self.nodes[number]["score"]
        return -math.inf if math.isnan(score) else score

    def bound(self, number):
        node = self.nodes[number]
        log_parent = np.log(np.float32(self.nodes[node["parent"]]["visits"]))
        visits = np.float32(node["visits"])
        spread = np.float32(self.config.selection.exploration) * np.sqrt(log_parent / visits)
        return node["total"] / visits + spread

    def iterate(self) -> bool:
        """One iteration; False if the selected node has no children and was closed."""
        number = 0
        while self.open_children(number):
            number = max(self.open_children(number), key=self.bound)
        own = self.nodes[number]["score"]
        outcome = 0.0 if math.isnan(own) else own
        if not self.nodes[number]["state"].done:
            children = self.expand(number)
            if not children:
                return False
            scores = [s for c in children if not math.isnan(s := self.nodes[c]["score"])]
            if scores:
                best = self.config.backup == "best"
                outcome = max(scores) if best else sum(scores) / len(scores)
        while number is not None:
            self.nodes[number]["visits"] += 1
            self.nodes[number]["total"] += np.float32(outcome)
            number = self.nodes[number]["parent"]
        return True

    def run(self):
        done = 0
        while done < self.config.num_iterations and not self.nodes[0]["closed"]:
            done += self.iterate()
        self.finish_greedily()
        finished = [n for n, node in self.nodes.items() if node["state"].done]

        def rank(number):
            visits = self.nodes[number]["visits"]
            return visits if self.config.answer == "most_visits" else 0, self.order(number)

        return max(finished, key=rank, default=0)

    def finish_greedily(self):
        current = None
        while not self.nodes[0]["closed"]:
            if current is None:
                if any(node["state"].done for node in self.nodes.values()):
                    return
                leaves = [
                    n for n, node in self.nodes.items()
                    if not node["children"] and not node["closed"]
                ]  # fmt: skip
                current = max(leaves, key=self.order)
            children = self.expand(current)
            current = max(children, key=self.order, default=None)
            if current is not None and self.nodes[current]["state"].done:
                return


def check(rollout, task, config, score=coarse, breaks=lambda *_: False, policy=None):
    """Compares an answer, its costs and the nodes of its search with those of a plain tree."""
    plain = PlainTree(task, config, score, breaks, policy or GamePolicy())
    chosen = plain.run()
    assert rollout.trajectory == plain.nodes[chosen]["state"]
    assert rollout.policy_tokens == plain.tokens
    assert rollout.failed_candidates == len(plain.failed)
    assert rollout.env_steps == rollout.reward_tokens == len(plain.nodes) - 1
    assert rollout.error == ("the game broke" if plain.nodes[0]["closed"] else None)
    path, number = set(), chosen
    while number is not None:
        path.add(number)
        number = plain.nodes[number]["parent"]
    found = rollout.search[: len(plain.nodes)]
    for (number, node), record in zip(plain.nodes.items(), found, strict=True):
        state = node["state"]
        assert record.parent == (-1 if number == 0 else node["parent"])
        assert record.reply == (state.steps[-1].reply if state.steps else "")
        assert (record.outcome, record.done) == (state.outcome, state.done)
        assert record.score == (None if math.isnan(node["score"]) else node["score"])
        assert record.visits == node["visits"]
        mean = float(node["total"]) / node["visits"] if node["visits"] else -math.inf
        assert record.value == (pytest.approx(mean, abs=1e-6) if math.isfinite(mean) else None)
        assert (record.status == "finished") == state.done
        assert (record.status == "kept") == bool(node["children"])
        assert record.chosen == (number in path)
    failed = rollout.search[len(plain.nodes) :]
    assert [(record.parent, record.action) for record in failed] == plain.failed
    assert all(record.status == "failed" for record in failed)
    return plain


def search(tasks, config, *, pool=None, scorer=None, policy=None):
    pool = pool or GamePool()
    found = list(config.run(policy or GamePolicy(), scorer or GameScorer(), pool, tasks, 0))
    assert pool.episodes == {}  # every environment was given back
    assert len(found) == len(tasks)
    return {r.trajectory.task.task_id: dataclasses.replace(r, wall_seconds=0.0) for r in found}


@pytest.mark.parametrize("moves", ["NESW", "N-"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"backup": "mean", "answer": "most_visits"},
        {"selection": UCB(exploration=2.0), "expansion_width": 1},
        {"num_iterations": 1},
        {"num_iterations": 40, "answer": "most_visits"},
    ],
)
def test_trees_equal_a_plain_tree(moves, changed):
    config = dataclasses.replace(CONFIG, **changed)
    found = search(TASKS, config, policy=GamePolicy(moves))
    for task in TASKS:
        plain = check(found[task.task_id], task, config, policy=GamePolicy(moves))
        assert found[task.task_id].trajectory.done
        assert plain.nodes[0]["visits"] == config.num_iterations


@pytest.mark.parametrize("score", [sometimes_undecided, undecided])
@pytest.mark.parametrize("num_iterations", [1, 8])
def test_states_without_a_score_come_last(score, num_iterations):
    config = dataclasses.replace(CONFIG, num_iterations=num_iterations)
    found = search(TASKS, config, scorer=GameScorer(score))
    for task in TASKS:
        check(found[task.task_id], task, config, score)


BREAKS = {
    "reset": lambda actions: actions == (),
    "first": lambda actions: len(actions) == 1 and actions[0].endswith(("N", "n")),
    "later": lambda actions: len(actions) >= 2,
    "sometimes": lambda actions: len(actions) > 0 and draw("breaks", *actions) < 0.4,
    "often": lambda actions: len(actions) > 1 and draw("breaks", *actions) < 0.8,
    "everything": lambda actions: len(actions) > 0,
}


@pytest.mark.parametrize("when", BREAKS)
@pytest.mark.parametrize("num_iterations", [1, 8])
def test_a_broken_environment_costs_its_candidate(when, num_iterations):
    """Closed nodes, repeated expansions and other tasks are those of plain trees."""
    config = dataclasses.replace(CONFIG, num_iterations=num_iterations)
    broken = {task.task_id for task in TASKS[2:]}

    def breaks(task, actions):
        considered = tuple(action_key(task, action) for action in actions)
        return task.task_id in broken and BREAKS[when](considered)

    found = search(TASKS, config, pool=GamePool(breaks))
    for task in TASKS:
        rollout = found[task.task_id]
        if when == "reset" and task.task_id in broken:
            assert (rollout.trajectory.steps, rollout.error) == ((), "the game broke")
        else:
            check(rollout, task, config, breaks=breaks)
    if when != "reset":
        assert any(found[task_id].failed_candidates for task_id in broken)


def test_concurrency_and_order_do_not_change_answers():
    expected = search(TASKS, dataclasses.replace(CONFIG, concurrency=1))
    scorer = GameScorer()
    assert (
        search(TASKS[::-1], dataclasses.replace(CONFIG, concurrency=9), scorer=scorer) == expected
    )
    assert scorer.calls < scorer.groups / 2  # tasks that expand together are scored together


def test_returns_of_the_environment_are_not_used(monkeypatch):
    """With other rewards the same states are searched, visited and chosen."""
    expected = search(TASKS, CONFIG)

    def without_reward(task, actions):
        return dataclasses.replace(answer(task, actions), reward=0.0, success=False)

    monkeypatch.setattr(random_game, "answer", without_reward)
    found = search(TASKS, CONFIG)
    for task_id, rollout in expected.items():
        assert sum(node.outcome for node in rollout.search) > 0
        nodes = [dataclasses.replace(node, outcome=0.0, success=False) for node in rollout.search]
        assert list(found[task_id].search) == nodes


def test_priors_guide_the_search_with_puct():
    found = search(TASKS, dataclasses.replace(CONFIG, selection=PUCT()))
    other = search(TASKS, CONFIG)
    assert any(found[name].search != other[name].search for name in found)
    assert all(rollout.search[0].visits == CONFIG.num_iterations for rollout in found.values())


def test_truncated_steps_are_counted():
    assert not any(rollout.truncated_steps for rollout in search(TASKS, CONFIG).values())
    found = search(TASKS, CONFIG, policy=GamePolicy(remembers=0))
    assert all(rollout.truncated_steps for rollout in found.values())


def test_no_task_gives_no_answer():
    assert search([], CONFIG) == {}


def test_environments_are_released_after_an_error():
    def score(state):
        raise ValueError("no memory")

    pool = GamePool()
    with pytest.raises(ValueError, match="no memory"):
        list(CONFIG.run(GamePolicy(), GameScorer(score), pool, TASKS, 0))
    assert pool.episodes == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_iterations": 0}, "num_iterations must be at least 1"),
        ({"expansion_width": 0}, "expansion_width must be at least 1"),
        ({"backup": "sum"}, "backup must be one of best, mean"),
        ({"answer": "first"}, "answer must be one of best_score, most_visits"),
        ({"selection": UCB}, r"selection must be an instance, such as UCB\(\)"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        GuidedMCTS(**options)
