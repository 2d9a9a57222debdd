"""How many programs a whole exploration compiles; the model's before it begins."""

from __future__ import annotations

import dataclasses

import jax
from random_game import GamePool, game

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.engine import Engine
from agentrm_jax.runtime.compilations import compilations
from agentrm_jax.search.explore import Explorer, SearchConfig
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES, tokenizer, weights

PROMPTS = [None, Prompt(instruction="Move.", example=()), Prompt(instruction="Look.", example=())]


def mixed(i: int):
    """Tasks of three environments, short and long ones."""
    return dataclasses.replace(game(i, max_steps=2 + i % 5), environment=str(i % 3))


def test_an_exploration_of_a_mixed_task_list_compiles_at_most_a_dozen_programs(tmp_path):
    params = weights(0)
    jax.clear_caches()
    with compilations() as counted:
        engine = Engine(params, CONFIG, dataclasses.replace(SIZES, context=512))
        search = SearchConfig(num_iterations=3, expansion_width=3, concurrency=4)
        agent = Agent(
            engine, tokenizer(), lambda task: PROMPTS[int(task.environment)], SAMPLING, 0, (3, 1)
        )
        agent.warm_up()
        first = counted.count
        store = TreeStore(tmp_path)
        Explorer(agent, GamePool(), store, search).run([mixed(i) for i in range(9)], {})
        store.close()
    trees = TreeStore.read(tmp_path)
    assert len(trees) == 9
    assert all(tree.finished and tree.error is None for tree in trees.values())
    # Weights by layer, the pool, reading, writing what was read, decoding behind conversations of
    # three lengths, writing what was decoded.
    assert first == 8
    # The phases of the trees: selecting, all others.
    assert counted.count == 10
