"""State-value pairs from stored trees (paper section 3.2); no environment or model is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.states import LabelledPath
from agentrm_jax.data.trees import TreeRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which states become labels, and how much each counts.

    Attributes:
      weighting: `faithful`: states with at least `min_visits`, all weight 1 (the paper's rule);
        `visits`: every visited state with weight N / (N + 2), terminal states, whose value is
        certain, with weight 1.
      min_visits: The paper's lambda; only for `faithful`.
    """

    weighting: Literal["faithful", "visits"] = "visits"
    min_visits: int = 3

    def __post_init__(self) -> None:
        if self.weighting not in ("faithful", "visits"):
            raise UserError(f"label.weighting: must be faithful or visits, not {self.weighting!r}")
        if self.min_visits < 1:
            raise UserError(f"label.min_visits: must be at least 1, not {self.min_visits}")

    def weight(self, visit_count: int, terminal: bool) -> float:
        """How much a state counts; 0 leaves it out."""
        if self.weighting == "faithful":
            return 1.0 if visit_count >= self.min_visits else 0.0
        if visit_count == 0:
            return 0.0
        return 1.0 if terminal else visit_count / (visit_count + 2)


def labelled_paths(record: TreeRecord, config: LabelConfig) -> Iterator[LabelledPath]:
    """The tree's root-to-leaf paths with the labels of their states.

    Every labelled state is carried by exactly one path, so that a model trained on all step ends
    of the paths sees each state's label once. Paths without a label are left out.
    """
    nodes = record.nodes
    visits, sums = record.backed_up()
    parents = {node.parent for node in nodes.values()}
    carried: set[int] = set()
    for leaf in sorted(set(nodes) - parents):
        path = [leaf]
        while path[-1] != 0:
            path.append(nodes[path[-1]].parent)
        path.reverse()
        steps = tuple(nodes[n].step for n in path[1:])
        weights = []
        for number in path:
            terminal = number != 0 and nodes[number].step.transition.done
            weight = config.weight(int(visits[number]), terminal)
            weights.append(0.0 if number in carried else weight)
        carried.update(path)
        if any(weights):
            yield LabelledPath(
                trajectory=Trajectory(
                    task=record.task, first_observation=record.first_observation, steps=steps
                ),
                node_ids=tuple(path),
                values=tuple(float(sums[n] / max(visits[n], 1)) for n in path),
                visit_counts=tuple(int(visits[n]) for n in path),
                weights=tuple(weights),
            )
