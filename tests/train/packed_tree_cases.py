"""Random trees of labelled states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentrm_jax.core.records import Step, Task, Transition
from agentrm_jax.data.chat import ChatFormat
from agentrm_jax.data.states import LabelledTree


class Letters:
    """A tokenizer of letters, small enough for the models of these tests."""

    chat = ChatFormat(
        begin=(1,), user_open=(2,), user_close=(3,), assistant_open=(4,), assistant_close=(5, 6)
    )

    control = frozenset(range(1, 7))

    def encode(self, text: str, before: int | None = None, after: int | None = None) -> list[int]:
        return [7 + ord(letter) - ord("a") for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + number - 7) for number in ids)


def random_text(rng: np.random.Generator) -> str:
    return "".join(chr(ord("a") + n) for n in rng.integers(0, 26, rng.integers(1, 5)))


def random_trees(seed: int, *, nodes: int = 12, tasks: int = 2) -> list[LabelledTree]:
    """Trees of states, most of which have a label."""
    rng = np.random.default_rng(seed)
    trees = []
    for number in range(tasks):
        parents = [-1, *(int(rng.integers(0, n)) for n in range(1, nodes))]
        steps = tuple(
            Step(
                reply=random_text(rng),
                action="",
                transition=Transition(
                    observation=random_text(rng), reward=0.0, done=False, success=False
                ),
            )
            for _ in range(1, nodes)
        )
        task = Task(
            environment="toy", task_id=f"toy/{number}", kind="toy", split="train",
            problem=str(number), max_steps=nodes, spec={},
        )  # fmt: skip
        first, values = random_text(rng), rng.random(nodes)
        labelled = rng.random(nodes) < 0.7
        trees.append(
            LabelledTree(
                task=task,
                first_observation=first,
                parents=tuple(parents),
                steps=steps,
                values=tuple(values.tolist()),
                visit_counts=(1,) * nodes,
                weights=tuple(0.5 + 0.1 * n if labelled[n] else 0.0 for n in range(nodes)),
            )
        )
    return trees
