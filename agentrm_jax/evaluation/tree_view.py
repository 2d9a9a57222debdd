"""A stored search tree as nested records for the report: what was tried, how often, how well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from agentrm_jax.core.records import Step
from agentrm_jax.data.trees import TreeRecord


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """Steps that follow each other without a choice, and the branches after the last one.

    A cached rollout is one branch, not as many nested ones as it has steps.

    Attributes:
      steps: At least one; none for the root.
      visit_count: Iterations that passed through; the same for all the steps.
      value: The mean return of those iterations; None where there were none.
      multiplicity: How many of the sampled turns had the first step's action.
      children: The most visited first.
    """

    steps: tuple[Step, ...]
    visit_count: int
    value: float | None
    multiplicity: int
    children: tuple[Branch, ...]

    @property
    def success(self) -> bool:
        return bool(self.steps) and self.steps[-1].transition.success

    @property
    def done(self) -> bool:
        return bool(self.steps) and self.steps[-1].transition.done


def branches(tree: TreeRecord) -> Branch:
    """The tree from its root; visits and values are added up from the stored iterations."""
    nodes = tree.nodes
    children: dict[int, list[int]] = {0: []}
    visits, sums = tree.backed_up()
    for node in nodes.values():
        children.setdefault(node.parent, []).append(node.node)

    def chain(start: int) -> list[int]:
        found = [start]
        while start != 0 and len(below := children.get(found[-1], [])) == 1:
            if visits[below[0]] != visits[start]:
                break
            found.append(below[0])
        return found

    # Children before parents, without recursion: a tree may be deeper than Python's stack.
    order, made = [0], {}
    for start in order:
        order.extend(children.get(chain(start)[-1], []))
    for start in reversed(order):
        own = chain(start)
        below = sorted(children.get(own[-1], []), key=lambda node: -visits[node])
        count = int(visits[start])
        made[start] = Branch(
            steps=tuple(nodes[node].step for node in own if node != 0),
            visit_count=count,
            value=float(sums[start] / count) if count else None,
            multiplicity=nodes[start].multiplicity if start else 1,
            children=tuple(made[node] for node in below),
        )
    return made[0]


def most_telling(trees: Sequence[TreeRecord]) -> TreeRecord | None:
    """The tree to show: outcomes mixed as evenly as possible, then the one with fewest nodes."""

    def rank(tree: TreeRecord) -> tuple[float, int]:
        outcomes = [iteration.outcome for iteration in tree.iterations]
        mean = sum(outcomes) / len(outcomes) if outcomes else 0.0
        return abs(mean - 0.5), tree.num_nodes

    return min(trees, key=rank, default=None)
