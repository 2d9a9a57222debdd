"""State-value pairs from stored trees (paper section 3.2); no environment or model is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.states import LabelledPath
from agentrm_jax.data.trees import NodeRecord, TreeRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which states become labels, and how much each counts.

    Attributes:
      weighting: `faithful`: states with at least `min_visits`, all weight 1 (the paper's rule);
        `visits`: every visited state with weight N / (N + 2), terminal states, whose value is
        certain, with weight 1.
      min_visits: The paper's lambda; only for `faithful`.
      target: `mean`: a state's mean return (the paper's); `td`: see `lambda_targets`.
      td_lambda: Of `td`. With 1 only outcomes count, with 0 a target is what the states one step
        further are worth.
    """

    weighting: Literal["faithful", "visits"] = "visits"
    min_visits: int = 3
    target: Literal["mean", "td"] = "mean"
    td_lambda: float = 0.9

    def __post_init__(self) -> None:
        check_fields(self, min_visits="[1, inf)", td_lambda="[0, 1]")
        check_choice("weighting", self.weighting, ("faithful", "visits"))
        check_choice("target", self.target, ("mean", "td"))

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
    values = sums / np.maximum(visits, 1)
    if config.target == "td":
        values = lambda_targets(record, visits, values, config.td_lambda)
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
                values=tuple(float(values[n]) for n in path),
                visit_counts=tuple(int(visits[n]) for n in path),
                weights=tuple(weights),
            )


def lambda_targets(
    record: TreeRecord, visits: np.ndarray, values: np.ndarray, td_lambda: float
) -> np.ndarray:
    """TD(lambda) targets (Sutton 1988) of the states, expected over what the policy does there.

    The target G of a state is the mean over its visited children c of
    (1 - lambda) V(c) + lambda G(c), with V the mean return and each child counted as often as the
    policy chose it (`times_chosen`); a state without such children has G = V. Only the end is paid,
    hence neither rewards nor a discount. V plus the generalised advantage estimate (Schulman et al.
    2016) with the same lambda is this number, too. Were children counted as often as the search
    visited them, every lambda would give V: the search prefers what it found to be good, and this
    undoes it.

    Args:
      visits: [M] by node, how many returns were backed up.
      values: [M] V.

    Returns:
      [M] float64.
    """
    parents = {node.node: node.parent for it in record.iterations for node in it.nodes}
    chosen = times_chosen(record)
    targets = np.array(values, np.float64)
    total, count = np.zeros(len(targets)), np.zeros(len(targets))
    for node in range(len(targets) - 1, -1, -1):  # children have higher numbers than parents
        if count[node]:
            targets[node] = total[node] / count[node]
        if node and visits[node]:
            worth = (1 - td_lambda) * values[node] + td_lambda * targets[node]
            total[parents[node]] += chosen[node] * worth
            count[parents[node]] += chosen[node]
    return targets


def times_chosen(record: TreeRecord) -> dict[int, int]:
    """How often the policy, asked in a node's parent, chose the node's action.

    A child that a rollout cached was chosen once then. When its parent is expanded later, turns
    with its action are merged into it without a record of how many they were: as many as the new
    children lack of the turns that are sampled in every expansion, as the root's was.
    """
    chosen: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    sampled = 0
    for iteration in record.iterations:
        new: dict[int, list[NodeRecord]] = {}
        failed: dict[int, int] = {}  # turns whose environment failed are no children
        for failure in iteration.failures:
            if failure.purpose == "expand":
                failed[failure.node] = failed.get(failure.node, 0) + failure.multiplicity
        for node in iteration.nodes:
            new.setdefault(node.parent, []).append(node)
        sampled = sampled or sum(node.multiplicity for node in new.get(0, ())) + failed.get(0, 0)
        for parent, own in new.items():
            counted = {node.node: node.multiplicity for node in own}
            if cached := children.get(parent):
                chosen[cached[0]] += max(0, sampled - sum(counted.values()) - failed.get(parent, 0))
            chosen |= counted
            children.setdefault(parent, []).extend(counted)
    return chosen
