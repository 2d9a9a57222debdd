"""Search trees as one record of arrays, and the jitted phases over all of them at once.

Row e holds one task's tree; node 0 is its root; nodes are numbered in the order in which they were
attached. `select` is mctx's `simulate`, `backup` its `backward`.

E trees, M nodes of a tree at most, W children of a node at most.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from agentrm_jax.core.records import Step
from agentrm_jax.data.trees import IterationRecord, back_up
from agentrm_jax.search.selection import Children, SelectionRule, priors, scores_of_children

NONE = -1


@flax.struct.dataclass
class Trees:
    """The search trees of several tasks.

    Attributes:
      parent: Number of the node's parent, NONE for roots and unused numbers.
      children: Numbers of the node's children in order of attachment, NONE after the last.
      visit_count: Number of returns backed up through the node.
      value_sum: Sum of the returns backed up through the node.
      prior_logit: Mean log-probability of the tokens of the reply that led to the node, NaN if
        there is none (`selection.priors`).
      expanded: Whether the policy was asked for children of the node.
      terminal: Whether the episode is over at the node.
    """

    parent: Int32[Array, "E M"]
    children: Int32[Array, "E M W"]
    visit_count: Int32[Array, "E M"]
    value_sum: Float32[Array, "E M"]
    prior_logit: Float32[Array, "E M"]
    expanded: Bool[Array, "E M"]
    terminal: Bool[Array, "E M"]

    @property
    def value(self) -> Float32[Array, "E M"]:
        """Mean return of each node; 0 if nothing was backed up."""
        return self.value_sum / jnp.maximum(self.visit_count, 1)


def prior_logit(step: Step) -> float:
    """Returns the mean log-probability of a reply's tokens, NaN if none are stored.

    The mean and not the sum: the sums of two replies of a hundred tokens differ so much that their
    softmax is 0 and 1, and a shorter reply would win by its length.
    """
    return float(np.mean(step.log_probs)) if step.log_probs else np.nan


def make_trees(num_trees: int, num_nodes: int, width: int) -> Trees:
    """Returns empty trees: each a root that is neither visited nor expanded.

    Args:
      num_trees: E.
      num_nodes: M, most nodes of a tree.
      width: W, most children of a node.
    """
    return jax.device_put(_empty(num_trees, num_nodes, width, np.full))


def _empty(num_trees: int, num_nodes: int, width: int, full: Callable[..., Any]) -> Trees:
    shape = (num_trees, num_nodes)
    return Trees(
        parent=full(shape, NONE, np.int32),
        children=full((*shape, width), NONE, np.int32),
        visit_count=full(shape, 0, np.int32),
        value_sum=full(shape, 0.0, np.float32),
        prior_logit=full(shape, np.nan, np.float32),
        expanded=full(shape, False, bool),
        terminal=full(shape, False, bool),
    )


@flax.struct.dataclass
class Changes:
    """The changes that `advance` makes to each tree, on the host; `none_of` changes nothing.

    Attributes:
      cleared: As in `clear`.
      parent, new, terminal, prior_logit, expands: As in `attach`.
      first_value: A value [E, W] for new nodes that counts as their first visit; NaN: not visited.
      leaf, outcome: As in `backup`.
    """

    cleared: Any
    parent: Any
    new: Any
    terminal: Any
    prior_logit: Any
    expands: Any
    first_value: Any
    leaf: Any
    outcome: Any

    @classmethod
    def none_of(cls, trees: Trees) -> Changes:
        E, _, W = trees.children.shape
        return cls(
            cleared=np.zeros(E, bool),
            parent=np.full(E, NONE, np.int32),
            new=np.full((E, W), NONE, np.int32),
            terminal=np.zeros((E, W), bool),
            prior_logit=np.full((E, W), np.nan, np.float32),
            expands=np.zeros(E, bool),
            first_value=np.full((E, W), np.nan, np.float32),
            leaf=np.full(E, NONE, np.int32),
            outcome=np.zeros(E, np.float32),
        )


def clear(trees: Trees, cleared: Bool[Array, " E"]) -> Trees:
    """Returns the trees with some of them emptied."""
    E, M, W = trees.children.shape
    return jax.tree.map(
        lambda old, new: jnp.where(cleared.reshape(E, *[1] * (old.ndim - 1)), new, old),
        trees,
        _empty(E, M, W, jnp.full),
    )


@functools.partial(jax.jit, static_argnames="rule")
def select(trees: Trees, rule: SelectionRule) -> Int32[Array, " E"]:
    """Walks from every root to the child with the largest score; the first child wins a tie.

    Args:
      trees: The trees.
      rule: Scores the children of a node. Each rule compiles its own program.

    Returns:
      The first node on the way that is terminal, not expanded or without children.
    """
    E = trees.parent.shape[0]
    rows = jnp.arange(E)
    value = trees.value

    def descends(node: jax.Array) -> jax.Array:
        return (
            trees.expanded[rows, node]
            & ~trees.terminal[rows, node]
            & (trees.children[rows, node, 0] != NONE)
        )

    def descend(node: jax.Array) -> jax.Array:
        numbers = trees.children[rows, node]  # [E, W]
        present = numbers != NONE
        index = (rows[:, None], jnp.maximum(numbers, 0))
        children = Children(
            value=value[index],
            prior=priors(trees.prior_logit[index], present),
            visits=jnp.where(present, trees.visit_count[index], 0),
            present=present,
            parent_visits=trees.visit_count[rows, node, None],
        )
        best = jnp.argmax(jnp.where(present, scores_of_children(rule, children), -jnp.inf), axis=1)
        return jnp.where(descends(node), numbers[rows, best], node)

    return jax.lax.while_loop(
        lambda node: jnp.any(descends(node)), descend, jnp.zeros(E, jnp.int32)
    )


def attach(
    trees: Trees,
    parent: Int32[Array, " E"],
    new: Int32[Array, "E W"],
    terminal: Bool[Array, "E W"],
    prior_logit: Float32[Array, "E W"],
    expands: Bool[Array, " E"],
) -> Trees:
    """Adds children to one node of each tree.

    Args:
      trees: The trees.
      parent: The node that gets children, NONE if the tree gets none.
      new: The new nodes' numbers, in order; NONE after the last.
      terminal: Whether the episode is over at the new node.
      prior_logit: As in `Trees`.
      expands: Whether this expands the node (a cached rollout step does not).
    """
    E, M, W = trees.children.shape
    rows = jnp.arange(E)
    parent_index = jnp.where(parent == NONE, M, parent)  # M is out of range and dropped
    num_children = jnp.sum(trees.children[rows, jnp.maximum(parent, 0)] != NONE, axis=1)
    rank = jnp.where(new == NONE, W, num_children[:, None] + jnp.arange(W))
    node = jnp.where((new == NONE) | (parent == NONE)[:, None], M, new)
    row = jnp.arange(E)[:, None]
    return dataclasses.replace(
        trees,
        parent=trees.parent.at[row, node].set(parent[:, None], mode="drop"),
        children=trees.children.at[row, parent_index[:, None], rank].set(new, mode="drop"),
        terminal=trees.terminal.at[row, node].set(terminal, mode="drop"),
        prior_logit=trees.prior_logit.at[row, node].set(prior_logit, mode="drop"),
        expanded=trees.expanded.at[rows, parent_index].max(expands, mode="drop"),
    )


def visit_first(
    trees: Trees, new: Int32[Array, "E W"], first_value: Float32[Array, "E W"]
) -> Trees:
    """Gives new nodes a value, which counts as their first visit.

    Args:
      trees: The trees.
      new: The new nodes' numbers, NONE after the last.
      first_value: Their values, NaN for a node that stays without visits.
    """
    M = trees.parent.shape[1]
    node = jnp.where((new == NONE) | jnp.isnan(first_value), M, new)  # M is out of range: dropped
    row = jnp.arange(new.shape[0])[:, None]
    return dataclasses.replace(
        trees,
        visit_count=trees.visit_count.at[row, node].set(1, mode="drop"),
        value_sum=trees.value_sum.at[row, node].set(first_value, mode="drop"),
    )


def backup(trees: Trees, leaf: Int32[Array, " E"], outcome: Float32[Array, " E"]) -> Trees:
    """Adds 1 to the visits and a return to the value sum of every node from a leaf to the root.

    Args:
      trees: The trees.
      leaf: The last node of the path, NONE if the tree stays as it is.
      outcome: The returns.
    """
    rows = jnp.arange(leaf.shape[0])
    M = trees.parent.shape[1]

    def up(state: tuple[jax.Array, Trees]) -> tuple[jax.Array, Trees]:
        node, trees = state
        index = jnp.where(node == NONE, M, node)  # M is out of range and dropped
        trees = dataclasses.replace(
            trees,
            visit_count=trees.visit_count.at[rows, index].add(1, mode="drop"),
            value_sum=trees.value_sum.at[rows, index].add(outcome, mode="drop"),
        )
        return jnp.where(node == NONE, NONE, trees.parent[rows, jnp.maximum(node, 0)]), trees

    return jax.lax.while_loop(lambda state: jnp.any(state[0] != NONE), up, (leaf, trees))[1]


@functools.partial(jax.jit, donate_argnums=0)
def advance(trees: Trees, changes: Changes) -> Trees:
    """Clears trees, attaches and values children, backs up returns: in this order, one program."""
    trees = clear(trees, changes.cleared)
    trees = attach(
        trees,
        changes.parent,
        changes.new,
        changes.terminal,
        changes.prior_logit,
        changes.expands,
    )
    trees = visit_first(trees, changes.new, changes.first_value)
    return backup(trees, changes.leaf, changes.outcome)


def from_iterations(
    iterations: Sequence[IterationRecord], num_nodes: int, width: int
) -> dict[str, np.ndarray]:
    """Returns one tree's arrays as stored iterations left them.

    A node was expanded if selection passed through it: it was the root, or visited before. Closed
    nodes are taken out of their parents' children, so that selection does not enter them.

    Args:
      iterations: The tree's iterations, in order.
      num_nodes: M.
      width: W.

    Returns:
      The fields of `Trees` by name, without the axis E. Equal to the searched arrays to the bit.
    """
    visits, sums = back_up(iterations, num_nodes, np.float32)
    parent = np.full(num_nodes, NONE, np.int32)
    children = np.full((num_nodes, width), NONE, np.int32)
    logits = np.full(num_nodes, np.nan, np.float32)
    expanded, terminal, visited = (np.zeros(num_nodes, bool) for _ in range(3))
    for iteration in iterations:
        for new in iteration.nodes:
            parent[new.node] = new.parent
            children[new.parent, np.sum(children[new.parent] != NONE)] = new.node
            terminal[new.node] = new.step.transition.done
            logits[new.node] = prior_logit(new.step)
        above = {node for backup in iteration.backups for node in backup.path[:-1]}
        passed = [node for node in above if node == 0 or visited[node]]
        expanded[[*passed, *iteration.expanded]] = True
        for backup in iteration.backups:
            visited[list(backup.path)] = True
        for closed in iteration.closed:
            children[parent[closed]] = _without(children[parent[closed]], closed)
    return {
        "parent": parent,
        "children": children,
        "visit_count": visits.astype(np.int32),
        "value_sum": sums,
        "prior_logit": logits,
        "expanded": expanded,
        "terminal": terminal,
    }


def _without(children: np.ndarray, closed: int) -> np.ndarray:
    """Returns the children [W] without one of them; NONE after the last."""
    open_children = [child for child in children.tolist() if child not in (NONE, closed)]
    return np.array(open_children + [NONE] * (len(children) - len(open_children)), np.int32)


def close(trees: Trees, row: int, closed: Sequence[int]) -> Trees:
    """Returns the trees with some nodes of one tree taken out of their parents' children.

    Args:
      trees: The trees.
      row: The tree.
      closed: Numbers of the nodes.
    """
    parent, children = np.asarray(trees.parent[row]), np.array(trees.children[row])
    for node in closed:
        children[parent[node]] = _without(children[parent[node]], node)
    return dataclasses.replace(trees, children=trees.children.at[row].set(children))


def put(trees: Trees, row: int, arrays: dict[str, np.ndarray]) -> Trees:
    """Returns the trees with the arrays of one of them replaced.

    Args:
      trees: The trees.
      row: The tree.
      arrays: The fields of `Trees` by name, without the axis E.
    """
    return Trees(
        **{
            name: getattr(trees, name).at[row].set(jnp.asarray(value))
            for name, value in arrays.items()
        }
    )
