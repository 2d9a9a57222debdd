"""Trees that grow together: each as if it were alone; the model and environments side by side."""

from __future__ import annotations

import dataclasses

import pytest
from agent_cases import tokenizer, weights
from random_game import GamePolicy, GamePool, game
from tiny_model import CONFIG, SAMPLING, SIZES

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.engine import Engine
from agentrm_jax.search.explore import Explorer, SearchConfig
from agentrm_jax.search.rollouts import rollouts

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


class Watched:
    """Passes calls on and writes down which of them came when."""

    def __init__(self, of, events, *names):
        self._of, self._events, self._names = of, events, names

    def __getattr__(self, name):
        found = getattr(self._of, name)
        if name not in self._names:
            return found

        def call(*arguments):
            answer = found(*arguments)
            if any(map(len, arguments)) or name == "collect":
                self._events.append(name)
            return answer

        return call


class Prompter(GamePolicy):
    """Answers everything at once, and has so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def room(self) -> int:
        return max(0, self.rows - sum(n for _, _, n in self._open.values()))

    def collect(self):
        answers = [(ticket, self._answer(*asked)) for ticket, asked in self._open.items()]
        self._open.clear()
        return answers


@pytest.mark.parametrize(("elsewhere", "rows"), [(True, 1), (True, 99), (False, 1)])
@pytest.mark.parametrize("kind", ["trees", "rollouts"])
def test_environments_act_while_the_model_works(tmp_path, kind, elsewhere, rows):
    """For one cohort, while the model works for another that fills its rows; those of this process
    let nobody wait."""
    events: list[str] = []
    policy = Watched(Prompter(rows), events, "submit", "collect")
    pool = Watched(GamePool(elsewhere=elsewhere), events, "branch", "step")
    tasks = [game(i) for i in range(8)]
    if kind == "trees":
        store = TreeStore(tmp_path)
        search = SearchConfig(num_iterations=8, expansion_width=3, concurrency=8)
        Explorer(policy, pool, store, search).run(tasks, {})
        store.close()
    else:
        assert len(list(rollouts(policy, pool, [(task, 0) for task in tasks], concurrency=8))) == 8
    working, during, idle = False, 0, 0
    for event in events:
        working = {"submit": True, "collect": False}.get(event, working)
        if event in ("branch", "step"):
            during, idle = during + working, idle + (not working)
    if elsewhere and rows == 1:
        assert during > 3 * idle  # idle: the last trees, when there is no other cohort
    else:
        assert idle
        assert not during
