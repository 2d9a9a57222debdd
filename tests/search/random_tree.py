"""Trees that grow at random, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agentrm_jax.core.records import Step, Transition
from agentrm_jax.data.trees import IterationRecord, NodeRecord

NONE = -1


class RandomTree:
    """A tree whose nodes have at most `width` children, and the records of its iterations.

    `cached_rollouts` as the explorer grows them; without, a new leaf is only evaluated, as in mctx.
    """

    def __init__(self, seed: object, width: int, cached_rollouts: bool = True) -> None:
        self.rng = np.random.default_rng(seed)
        self.width, self.cached_rollouts = width, cached_rollouts
        self.parent, self.children, self.terminal = [NONE], [[]], [False]
        self.visits, self.total = [0], [np.float32(0)]
        self.expanded, self.outcome = [False], [0.0]
        self.prior_logit = [np.float32(np.nan)]
        self.records: list[IterationRecord] = []

    def _add(self, parent: int, terminal: bool) -> NodeRecord:
        number = len(self.parent)
        self.parent.append(parent)
        self.children.append([])
        self.children[parent].append(number)
        self.terminal.append(terminal)
        self.visits.append(0)
        self.total.append(np.float32(0))
        self.expanded.append(False)
        self.outcome.append(round(float(self.rng.random()), 3))
        reward = self.outcome[-1] if terminal else 0.0
        answer = Transition(observation="", reward=reward, done=terminal, success=False)
        log_probs = tuple(-3 * np.random.default_rng([number, parent]).random(2))
        self.prior_logit.append(np.float32(np.mean(log_probs)))
        step = Step(reply="", action="", transition=answer, log_probs=log_probs)
        return NodeRecord(node=number, parent=parent, step=step, multiplicity=1)

    def grow(self) -> Iterator[tuple[int, list[NodeRecord], bool] | int]:
        """One iteration on a random path: yields (parent, new nodes, expands) and, last, leaf."""
        node, new = 0, []
        while not self.terminal[node] and (node == 0 or self.visits[node] > 0):
            if not self.expanded[node]:
                room = self.width - len(self.children[node])
                count = int(self.rng.integers(0 if self.children[node] else 1, room + 1))
                added = [self._add(node, self.rng.random() < 0.3) for _ in range(count)]
                self.expanded[node] = True
                new += added
                yield node, added, True
            node = int(self.rng.choice(self.children[node]))
        while self.cached_rollouts and not self.terminal[node]:
            added = [self._add(node, self.rng.random() < 0.5)]
            new += added
            yield node, added, False
            node = added[0].node
        leaf, path = node, []
        while node != NONE:
            self.visits[node] += 1
            self.total[node] += np.float32(self.outcome[leaf])
            path.append(node)
            node = self.parent[node]
        self.records.append(
            IterationRecord(
                task_id="", iteration=len(self.records), nodes=tuple(new),
                path=tuple(reversed(path)), outcome=self.outcome[leaf],
            )
        )  # fmt: skip
        yield leaf

    def grown(self, iterations: int) -> RandomTree:
        for _ in range(iterations):
            for _ in self.grow():
                pass
        return self
