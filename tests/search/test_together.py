"""Trees that grow together: each as if it were alone; the model and environments side by side."""

from __future__ import annotations

import dataclasses

import pytest
from random_game import GamePolicy, GamePool, game

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import BackgroundPolicy, Prompt
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.engine import Engine
from agentrm_jax.search.explore import Explorer, SearchConfig
from agentrm_jax.search.rollouts import rollouts
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES, tokenizer, weights

PROMPTS = [None, Prompt(instruction="Move.", example=()), Prompt(instruction="Look.", example=())]
TASKS = [
    dataclasses.replace(game(i, max_steps=2 + i % 4), environment=str(i % 3)) for i in range(32)
]
SEARCH = SearchConfig(num_iterations=3, expansion_width=3, concurrency=32)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The trees of some tasks, by a tiny model with a pool of its own."""

    def grow(tasks, cache_tokens=65_536, search=SEARCH):
        engine = Engine(weights(0), CONFIG, dataclasses.replace(SIZES, cache_tokens=cache_tokens))
        agent = Agent(
            engine, tokenizer(), lambda task: PROMPTS[int(task.environment)], SAMPLING, 0, (3, 1)
        )
        directory = tmp_path_factory.mktemp("trees")
        store = TreeStore(directory)
        Explorer(agent, GamePool(), store, search).run(tasks, {})
        store.close()
        return TreeStore.read(directory), engine

    return grow


@pytest.fixture(scope="module")
def together(grown):
    return grown(TASKS)


def test_a_tree_is_the_same_alone_and_among_31_others(grown, together):
    """To the bit, log-probabilities and all: the shapes are the same."""
    records, _ = together
    assert len(records) == 32
    for task in TASKS[::11]:
        alone, _ = grown([task])
        assert alone[task.task_id] == records[task.task_id]


def test_a_small_pool_and_few_slots_give_the_same_trees(grown, together):
    records, engine = together
    search = dataclasses.replace(SEARCH, concurrency=8)
    found, small = grown(TASKS, cache_tokens=256, search=search)
    # What was given up after it was decoded is read again in another shape.
    assert without_log_probs(found) == without_log_probs(records)
    assert small.usage.read > engine.usage.read  # it had to give pages up


def without_log_probs(records):
    return {
        task_id: [
            dataclasses.replace(node, step=dataclasses.replace(node.step, log_probs=()))
            for iteration in record.iterations
            for node in iteration.nodes
        ]
        for task_id, record in records.items()
    }


class WatchedPool(GamePool):
    """Counts its calls while the policy's model works, and those while it does not."""

    def __init__(self, policy, elsewhere):
        super().__init__(elsewhere=elsewhere)
        self.policy, self.during, self.idle = policy, 0, 0

    def _count(self):
        self.during += bool(self.policy.working)
        self.idle += not self.policy.working

    def branch(self, requests):
        self._count()
        return super().branch(requests)

    def step(self, requests):
        self._count()
        return super().step(requests)


class Batches(GamePolicy, BackgroundPolicy):
    """Works as an engine does: requests that come during a call wait for the next one.

    A call answers all that had come before it; `rows` decides what `room` says.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.working = rows, []

    def submit(self, questions):
        assert questions  # a policy is not called without a request
        return super().submit(questions)

    def room(self) -> int:
        return max(0, self.rows - sum(question.n for question in self._open.values()))

    def collect(self):
        self.start()
        assert self.working  # nor is it waited for without one
        answers = [(ticket, self._answer(*self._open.pop(ticket))) for ticket in self.working]
        self.working = []
        return answers

    def start(self):
        self.working = self.working or list(self._open)


@pytest.mark.parametrize(("elsewhere", "rows"), [(True, 1), (True, 99), (False, 1)])
@pytest.mark.parametrize("kind", ["trees", "rollouts"])
def test_environments_act_while_the_model_works(tmp_path, kind, elsewhere, rows):
    """For one cohort, while the model works for another that fills its rows; those of this process
    act as soon as the model has answered."""
    policy = Batches(rows)
    pool = WatchedPool(policy, elsewhere)
    tasks = [game(i) for i in range(8)]
    if kind == "trees":
        store = TreeStore(tmp_path)
        search = SearchConfig(num_iterations=8, expansion_width=3, concurrency=8)
        Explorer(policy, pool, store, search).run(tasks, {})
        store.close()
    else:
        assert len(list(rollouts(policy, pool, [(task, 0) for task in tasks], concurrency=8))) == 8
    if elsewhere and rows == 1:
        assert pool.during > 3 * pool.idle  # idle: the last trees, when there is no other cohort
    else:
        assert pool.idle
        assert not pool.during
