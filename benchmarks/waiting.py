"""The time that a tree search waits for its environments, with and without overlap."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
    Question,
)
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.models import Model
from agentrm_jax.search.explore import Explorer, SearchConfig

T = TypeVar("T")


class TimedPool:
    """A pool that counts the seconds in which somebody waited for it."""

    def __init__(self, pool: EnvironmentPool) -> None:
        self._pool = pool
        self.seconds = 0.0

    def _timed(self, call: Callable[[], T]) -> T:
        begin = time.monotonic()
        try:
            return call()
        finally:
            self.seconds += time.monotonic() - begin

    def reset(self, tasks: Sequence[Task]) -> list[tuple[int, str] | EnvironmentFailure]:
        return self._timed(lambda: self._pool.reset(tasks))

    def branch(
        self, requests: Sequence[tuple[int, str]]
    ) -> list[tuple[int, Transition] | EnvironmentFailure]:
        return self._timed(lambda: self._pool.branch(requests))

    def step(self, requests: Sequence[tuple[int, str]]) -> list[Transition | EnvironmentFailure]:
        return self._timed(lambda: self._pool.step(requests))

    def release(self, handles: Sequence[int]) -> None:
        self._timed(lambda: self._pool.release(handles))

    def action_key(self, task: Task, action: str) -> str:
        return self._pool.action_key(task, action)

    def elsewhere(self, task: Task) -> bool:
        return self._pool.elsewhere(task)

    def close(self) -> None:
        self._pool.close()


class OneAfterAnother:
    """A policy that is done before the environments move: nothing overlaps."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._found: list[tuple[int, list[Proposal]]] = []

    def submit(self, questions: Sequence[Question]) -> list[int]:
        tickets = self._policy.submit(questions)
        left = set(tickets)
        while left:
            found = self._policy.collect()
            self._found += found
            left -= {ticket for ticket, _ in found}
        return tickets

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        found, self._found = self._found, []
        return found

    def room(self) -> int:
        return self._policy.room()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    tasks: int = 8
    iterations: int = 3
    expansion_width: int = 4
    max_steps: int = 8
    workers: int = 2


def share(name: str, model: Model, engine: EngineConfig, sizes: Sizes) -> dict[str, Any]:
    """The share of a search's wall clock in which it waited for the environments."""
    family = load_family(name)
    tasks = [
        dataclasses.replace(task, max_steps=min(task.max_steps, sizes.max_steps))
        for task in family.tasks("train", kinds=family.kinds(), n=sizes.tasks)
    ]
    pool = TimedPool(EnvPool(workers=sizes.workers, step_seconds=300.0))
    found: dict[str, Any] = {}
    try:
        begun = pool.reset(tasks)  # what is loaded once
        pool.release([one[0] for one in begun if isinstance(one, tuple)])
        for way in ("one after another", "overlapping"):
            agent = Agent(
                Engine(model.params, model.config, engine), model.tokenizer, lambda task: None,
                Sampling(max_tokens=48), 0, (sizes.expansion_width, 1),
            )  # fmt: skip
            agent.warm_up()
            policy = OneAfterAnother(agent) if way == "one after another" else agent
            config = SearchConfig(
                num_iterations=sizes.iterations,
                expansion_width=sizes.expansion_width,
                concurrency=len(tasks),
            )
            with tempfile.TemporaryDirectory() as folder:
                store = TreeStore(pathlib.Path(folder))
                pool.seconds, begin = 0.0, time.monotonic()
                Explorer(policy, pool, store, config).run(tasks, {})
                total = time.monotonic() - begin
                store.close()
                trees = TreeStore.read(pathlib.Path(folder))
            found[way] = {
                "seconds": total,
                "share": pool.seconds / total,
                "nodes": sum(tree.num_nodes for tree in trees.values()),
                "errors": sum(tree.error is not None for tree in trees.values()),
            }
    finally:
        pool.close()
    return found
