"""Labels: values of states from search trees or logged trajectories (paper section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.records import Trajectory, canonical_form
from agentrm_jax.data.states import ROOT_PARENT, LabelledTree
from agentrm_jax.data.trees import NodeRecord, TreeRecord
from agentrm_jax.search.logged_trees import trees_of_trajectories


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """The states that have a label, and the label's weight and value.

    Attributes:
      weighting: `faithful`: states with at least `min_visits` visits, all with weight 1 (the
        paper's rule); `visits`: every visited state with weight N / (N + 2), but terminal states,
        whose value is certain, with weight 1.
      min_visits: The paper's lambda; only for `faithful`.
      target: `mean`: a state's mean return (the paper's); `max`: the largest return that was
        reached from it; `td`: its TD(lambda) target (`lambda_targets`).
      num_trees: Trees that are labelled; 0 takes all. Smaller numbers take subsets of larger ones.
      td_lambda: The lambda of `td`. With 1 the target of a state is made of outcomes alone, with 0
        of the values of its children alone.
      gamma: Discount: a return counts gamma^n from n steps before its end, so that of two ways to
        the same outcome the shorter one is worth more. 1 is the paper's.
      terminal: Whether states that end an episode have a label. Best-of-n scores exactly those.
    """

    weighting: Literal["faithful", "visits"] = "visits"
    min_visits: int = 3
    target: Literal["mean", "max", "td"] = "mean"
    td_lambda: float = 0.9
    gamma: float = 1.0
    terminal: bool = True
    num_trees: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            min_visits="[1, inf)",
            td_lambda="[0, 1]",
            gamma="(0, 1]",
            num_trees="[0, inf)",
        )
        check_choice("weighting", self.weighting, ("faithful", "visits"))
        check_choice("target", self.target, ("mean", "max", "td"))

    def weight(self, visit_count: int, terminal: bool) -> float:
        """Returns the weight of a state's label; 0 means that it has none.

        Args:
          visit_count: Number of returns that were backed up through the state.
          terminal: Whether the state ends its episode.
        """
        if terminal and not self.terminal:
            return 0.0
        if self.weighting == "faithful":
            return 1.0 if visit_count >= self.min_visits else 0.0
        if visit_count == 0:
            return 0.0
        return 1.0 if terminal else visit_count / (visit_count + 2)


DEFAULT = LabelConfig()
ONCE = LabelConfig(weighting="faithful", min_visits=1)
"""Every state has a label, with weight 1."""


def chosen_trees(trees: Iterable[TreeRecord], num_trees: int) -> list[TreeRecord]:
    """Returns the trees that are labelled, in their order.

    Args:
      trees: Search trees.
      num_trees: How many are labelled; 0 for all. They are drawn by a hash of their tasks, so that
        a smaller number takes a subset of a larger one.
    """
    given = list(trees)
    drawn = sorted(range(len(given)), key=lambda i: canonical_form(given[i].task.task_id))
    return [given[i] for i in sorted(drawn[: num_trees or None])]


def label(trees: Iterable[TreeRecord], config: LabelConfig = DEFAULT) -> list[LabelledTree]:
    """Returns search trees with the values of their states (paper section 3.2).

    Args:
      trees: Search trees; one whose search failed may have no label.
      config: Which states have a label, and its weight and value.

    Returns:
      One labelled tree for each tree, or for `num_trees` of them, in order; nodes have the same
      numbers.
    """
    return [label_tree(tree, config) for tree in chosen_trees(trees, config.num_trees)]


def label_tree(tree: TreeRecord, config: LabelConfig = DEFAULT) -> LabelledTree:
    """Returns a search tree with the values of its states.

    Args:
      tree: The search tree.
      config: Which states have a label, and its weight and value.

    Returns:
      The labelled tree; nodes have the same numbers.
    """
    visits, sums = tree.backed_up()
    values = sums / np.maximum(visits, 1)
    if config.target == "max" or config.gamma != 1:
        of = "max" if config.target == "max" else "mean"
        values = discounted_values(tree, config.gamma, of)
    if config.target == "td":
        values = lambda_targets(tree, visits, values, config.td_lambda, config.gamma)
    nodes = [node for _, node in sorted(tree.nodes.items())]
    terminal = [False, *(node.step.transition.done for node in nodes)]
    return LabelledTree(
        task=tree.task,
        first_observation=tree.first_observation,
        parents=(ROOT_PARENT, *(node.parent for node in nodes)),
        steps=tuple(node.step for node in nodes),
        values=tuple(values.tolist()),
        visit_counts=tuple(visits.tolist()),
        weights=tuple(map(config.weight, visits.tolist(), terminal)),
    )


def label_trajectories(
    trajectories: Iterable[Trajectory], config: LabelConfig = ONCE
) -> list[LabelledTree]:
    """Returns logged trajectories with the values of their states.

    The value of a state is the mean outcome of the trajectories that begin with it. This labels
    logged trajectories, for which there is neither a tree nor an environment.

    Args:
      trajectories: Trajectories whose rewards sum to an outcome in [0, 1]. Those of one problem
        with the same first observation share a tree.
      config: Which states have a label, and its weight and value; by default every state has one,
        with weight 1.

    Returns:
      One labelled tree for each problem and first observation, in the order of the trajectories.

    Raises:
      UserError: An outcome is not within 0 and 1.
    """
    return label(trees_of_trajectories(trajectories), config)


def discounted_values(
    tree: TreeRecord, gamma: float, of: Literal["mean", "max"] = "mean"
) -> np.ndarray:
    """Returns the mean or the largest discounted return of each state's rollouts.

    Args:
      tree: The search tree of M nodes.
      gamma: Discount of a step, in (0, 1].
      of: The mean over the rollouts that passed through the state, or the largest.

    Returns:
      [M] float64 values by node; 0 for nodes without a visit.
    """
    visits, sums, largest = (np.zeros(tree.num_nodes) for _ in range(3))
    for backup in tree.backups:
        path = list(backup.path)  # from the root to the end
        returns = backup.outcome * gamma ** np.arange(len(path) - 1, -1, -1)
        visits[path] += 1
        sums[path] += returns
        largest[path] = np.maximum(largest[path], returns)
    return largest if of == "max" else sums / np.maximum(visits, 1)


def lambda_targets(
    tree: TreeRecord,
    visits: np.ndarray,
    values: np.ndarray,
    td_lambda: float,
    gamma: float = 1.0,
) -> np.ndarray:
    """Returns the TD(lambda) targets (Sutton 1988) of the states under the sampling policy.

    The target G of a state is the mean over its visited children c of
    gamma ((1 - lambda) V(c) + lambda G(c)), with V the mean return and each child counted as often
    as the policy chose it (`times_chosen`); a state without visited children has G = V. Only the
    end is rewarded, hence no other rewards. G equals V plus the generalised advantage
    estimate (Schulman et al. 2016) with the same lambda. If children were counted as often as the
    search visited them, every lambda would give V: the search prefers children with large values,
    and counting the policy's choices removes that preference.

    Args:
      tree: The search tree of M nodes.
      visits: [M] visit counts by node.
      values: [M] mean returns V by node, discounted by gamma.
      td_lambda: lambda, in [0, 1].
      gamma: Discount of a step, in (0, 1].

    Returns:
      [M] float64 targets by node.
    """
    parents = {number: node.parent for number, node in tree.nodes.items()}
    chosen = times_chosen(tree)
    targets = np.array(values, np.float64)
    total, count = np.zeros(len(targets)), np.zeros(len(targets))
    for node in range(len(targets) - 1, -1, -1):  # children have higher numbers than parents
        if count[node]:
            targets[node] = total[node] / count[node]
        if node and visits[node]:
            mixed = gamma * ((1 - td_lambda) * values[node] + td_lambda * targets[node])
            total[parents[node]] += chosen[node] * mixed
            count[parents[node]] += chosen[node]
    return targets


def times_chosen(tree: TreeRecord) -> dict[int, float]:
    """Returns how many of the turns sampled at a node's parent had the node's action, by node.

    When a parent whose children were cached by rollouts is expanded later, turns with the same
    action as one of them are merged into it without a record of their number. The number is
    inferred: every expansion samples the same number of turns as the expansion of the root, and
    turns that became neither new children nor failures were merged. If several rollouts have left
    several children, the merged turns are divided between them in the proportion in which the
    rollouts chose them; the result may be a fraction.
    """
    chosen: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    sampled = 0
    for iteration in tree.iterations:
        new: dict[int, list[NodeRecord]] = {}
        failed: dict[int, int] = {}  # turns whose environment failed are no children
        for failure in iteration.failures:
            if failure.purpose == "expand":
                failed[failure.node] = failed.get(failure.node, 0) + failure.multiplicity
        for node in iteration.nodes:
            new.setdefault(node.parent, []).append(node)
        sampled = sampled or sum(node.multiplicity for node in new.get(0, ())) + failed.get(0, 0)
        for parent, new_children in new.items():
            counted = {node.node: node.multiplicity for node in new_children}
            if cached := children.get(parent):
                merged = max(0, sampled - sum(counted.values()) - failed.get(parent, 0))
                before = sum(chosen[child] for child in cached)
                for child in cached:
                    chosen[child] += merged * chosen[child] / before
            chosen |= counted
            children.setdefault(parent, []).extend(counted)
    return chosen
