"""A made-up run for the tests of results and report."""

from __future__ import annotations

import numpy as np

from agentrm_jax.core.records import Step, Task, Transition
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeRecord
from agentrm_jax.evaluation.episodes import Episode

KINDS = {"OpenDoor": False, "PickupDist": False, "PickupLoc": True}
METHODS = (
    ("greedy", None, 1, None, 0.55),
    ("random_of_n", None, 5, None, 0.5),
    ("oracle_of_n", None, 5, None, 0.9),
    ("best_of_n", "explicit", 5, None, 0.8),
    ("beam", "explicit", 1, 5, 0.92),
    ("beam", "random", 1, 5, 0.45),
)


def task(number: int = 0, kind: str = "OpenDoor") -> Task:
    return Task(
        environment="babyai",
        task_id=f"babyai/{kind}/{number}",
        kind=kind,
        split="test",
        problem=f"{number:016x}",
        max_steps=20,
        spec={"seed": number},
        held_out=KINDS[kind],
    )


def episodes(tasks_of_kind: int = 30, seed: int = 0) -> list[Episode]:
    """Outcomes of 0 and 1 whose means lie near the last column of METHODS."""
    generator = np.random.default_rng(seed)
    tokens = {"greedy": 70, "beam": 1100}
    made = []
    for method, reward_model, n, width, mean in METHODS:
        for kind in KINDS:
            for number in range(tasks_of_kind):
                solved = float(generator.random() < mean)
                made.append(
                    Episode(
                        task=task(number, kind),
                        method=method,
                        reward_model=reward_model,
                        n=n,
                        beam_width=width,
                        expansion_width=width,
                        seed=0,
                        outcome=solved,
                        success=solved,
                        policy_tokens=tokens.get(method, 360),
                        reward_tokens=0 if reward_model is None else 900,
                        env_steps=7 * n,
                        wall_seconds=0.5,
                        steps=7,
                    )
                )
    return made


def step(action: str, observation: str, *, reward: float = 0.0, done: bool = False) -> Step:
    return Step(
        reply=f"Thought: I try it.\nAction: {action}",
        action=action,
        transition=Transition(
            observation=observation, reward=reward, done=done, success=reward > 0.99
        ),
    )


def tree(observation: str = "You see a red door.") -> TreeRecord:
    """Root -> 1 (-> 2 -> 3, solved), root -> 4 (dead end), then 1 -> 5 (ended)."""

    def node(number: int, parent: int, *, times: int = 1, **kwargs: object) -> NodeRecord:
        made = step(f"action {number}", observation, **kwargs)  # type: ignore[arg-type]
        return NodeRecord(node=number, parent=parent, step=made, multiplicity=times)

    def iteration(number: int, nodes: list[NodeRecord], path: tuple[int, ...], outcome: float):
        return IterationRecord(
            task_id=task().task_id,
            iteration=number,
            nodes=tuple(nodes),
            path=path,
            outcome=outcome,
        )

    first = [node(1, 0, times=3), node(4, 0), node(2, 1), node(3, 2, reward=1.0, done=True)]
    return TreeRecord(
        task=task(),
        first_observation="Goal: open the red door.",
        iterations=(
            iteration(0, first, (0, 1, 2, 3), 1.0),
            iteration(1, [node(5, 1, done=True)], (0, 1, 5), 0.0),
            iteration(2, [], (0, 1, 2, 3), 1.0),
        ),
        finished=True,
    )
