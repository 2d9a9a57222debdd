"""Search trees as one record of arrays, and the jitted phases over all of them at once.

Slot e holds one task's tree; node 0 is its root; nodes are numbered in the order in which they were
attached, never in the order of arrival. mctx calls our select `simulate` and our backup `backward`.

E trees, M node slots, W children of a node at most.
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

from agentrm_jax.data.trees import IterationRecord

NONE = -1


@flax.struct.dataclass
class Trees:
    """Attributes:
    parent: [E, M] int32, NONE for roots and unused slots.
    children: [E, M, W] int32 in order of attachment, NONE behind the last.
    visit_count: [E, M] int32.
    value_sum: [E, M] float32, sum of the returns backed up through the node.
    expanded: [E, M] bool, whether the policy was asked for children of the node.
    terminal: [E, M] bool, whether the episode is over there.
    """

    parent: jax.Array
    children: jax.Array
    visit_count: jax.Array
    value_sum: jax.Array
    expanded: jax.Array
    terminal: jax.Array

    @property
    def value(self) -> jax.Array:
        """[E, M] mean return; 0 where nothing was backed up."""
        return self.value_sum / jnp.maximum(self.visit_count, 1)


def make_trees(num_trees: int, num_nodes: int, width: int) -> Trees:
    """Empty trees: each a root that is neither visited nor expanded."""
    return jax.device_put(_empty(num_trees, num_nodes, width, np.full))


def _empty(num_trees: int, num_nodes: int, width: int, full: Callable[..., Any]) -> Trees:
    shape = (num_trees, num_nodes)
    return Trees(
        parent=full(shape, NONE, np.int32),
        children=full((*shape, width), NONE, np.int32),
        visit_count=full(shape, 0, np.int32),
        value_sum=full(shape, 0.0, np.float32),
        expanded=full(shape, False, bool),
        terminal=full(shape, False, bool),
    )


@flax.struct.dataclass
class Changes:
    """What `advance` does to each tree, on the host; `none_of` changes nothing.

    Attributes:
      cleared: As in `clear`.
      parent, new, terminal, expands: As in `attach`.
      leaf, outcome: As in `backup`.
    """

    cleared: Any
    parent: Any
    new: Any
    terminal: Any
    expands: Any
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
            expands=np.zeros(E, bool),
            leaf=np.full(E, NONE, np.int32),
            outcome=np.zeros(E, np.float32),
        )


def clear(trees: Trees, slots: jax.Array) -> Trees:
    """Empties the trees of the slots [E] bool."""
    E, M, W = trees.children.shape
    return jax.tree.map(
        lambda old, new: jnp.where(slots.reshape(E, *[1] * (old.ndim - 1)), new, old),
        trees,
        _empty(E, M, W, jnp.full),
    )


def upper_confidence_bound(
    value: jax.Array, visit_count: jax.Array, parent_visits: jax.Array, exploration: jax.Array
) -> jax.Array:
    """V + c sqrt(ln N_parent / N); +inf for a node that was never visited. Shapes broadcast.

    The paper's selection rule (section 3.2) with c left open.
    """
    spread = jnp.sqrt(jnp.log(jnp.maximum(parent_visits, 1)) / jnp.maximum(visit_count, 1))
    return jnp.where(visit_count > 0, value + exploration * spread, jnp.inf)


@jax.jit
def select(trees: Trees, exploration: jax.Array) -> jax.Array:
    """Walks from every root along the largest upper confidence bound; the first child wins a tie.

    Returns:
      [E] int32, the first node on the way that is terminal, not expanded or without children.
    """
    E = trees.parent.shape[0]
    slots = jnp.arange(E)
    value = trees.value

    def descends(node: jax.Array) -> jax.Array:
        return (
            trees.expanded[slots, node]
            & ~trees.terminal[slots, node]
            & (trees.children[slots, node, 0] != NONE)
        )

    def descend(node: jax.Array) -> jax.Array:
        children = trees.children[slots, node]  # [E, W]
        at = (slots[:, None], jnp.maximum(children, 0))
        bound = upper_confidence_bound(
            value[at], trees.visit_count[at], trees.visit_count[slots, node, None], exploration
        )
        best = jnp.argmax(jnp.where(children == NONE, -jnp.inf, bound), axis=1)
        return jnp.where(descends(node), children[slots, best], node)

    return jax.lax.while_loop(
        lambda node: jnp.any(descends(node)), descend, jnp.zeros(E, jnp.int32)
    )


def attach(
    trees: Trees, parent: jax.Array, new: jax.Array, terminal: jax.Array, expands: jax.Array
) -> Trees:
    """Adds children to one node of each tree.

    Args:
      parent: [E] int32, NONE where a tree gets none.
      new: [E, W] int32 the new nodes' numbers, in order; NONE behind the last.
      terminal: [E, W] bool.
      expands: [E] bool, whether this expands the node (a cached rollout step does not).
    """
    E, M, W = trees.children.shape
    slots = jnp.arange(E)
    at = jnp.where(parent == NONE, M, parent)  # M is out of range and dropped
    present = jnp.sum(trees.children[slots, jnp.maximum(parent, 0)] != NONE, axis=1)
    place = jnp.where(new == NONE, W, present[:, None] + jnp.arange(W))
    node = jnp.where((new == NONE) | (parent == NONE)[:, None], M, new)
    row = slots[:, None]
    return dataclasses.replace(
        trees,
        parent=trees.parent.at[row, node].set(parent[:, None], mode="drop"),
        children=trees.children.at[row, at[:, None], place].set(new, mode="drop"),
        terminal=trees.terminal.at[row, node].set(terminal, mode="drop"),
        expanded=trees.expanded.at[slots, at].max(expands, mode="drop"),
    )


def backup(trees: Trees, leaf: jax.Array, outcome: jax.Array) -> Trees:
    """N += 1 and value_sum += outcome on every node from the leaf to the root.

    Args:
      leaf: [E] int32, NONE where a tree is left alone.
      outcome: [E] float32 returns.
    """
    slots = jnp.arange(leaf.shape[0])
    M = trees.parent.shape[1]

    def up(state: tuple[jax.Array, Trees]) -> tuple[jax.Array, Trees]:
        node, trees = state
        at = jnp.where(node == NONE, M, node)
        trees = dataclasses.replace(
            trees,
            visit_count=trees.visit_count.at[slots, at].add(1, mode="drop"),
            value_sum=trees.value_sum.at[slots, at].add(outcome, mode="drop"),
        )
        return jnp.where(node == NONE, NONE, trees.parent[slots, jnp.maximum(node, 0)]), trees

    return jax.lax.while_loop(lambda state: jnp.any(state[0] != NONE), up, (leaf, trees))[1]


@functools.partial(jax.jit, donate_argnums=0)
def advance(trees: Trees, changes: Changes) -> Trees:
    """Clears, attaches and backs up, in this order, in one program."""
    trees = clear(trees, changes.cleared)
    trees = attach(trees, changes.parent, changes.new, changes.terminal, changes.expands)
    return backup(trees, changes.leaf, changes.outcome)


def from_iterations(
    iterations: Sequence[IterationRecord], num_nodes: int, width: int
) -> dict[str, np.ndarray]:
    """One tree's arrays as stored iterations left them, by the names of `Trees`, without axis E.

    A node was expanded when selection passed through it: it was the root, or visited before. Nodes
    that are closed are no children any more, so that selection does not enter them.
    """
    parent = np.full(num_nodes, NONE, np.int32)
    children = np.full((num_nodes, width), NONE, np.int32)
    visit_count = np.zeros(num_nodes, np.int32)
    value_sum = np.zeros(num_nodes, np.float32)
    expanded, terminal = np.zeros(num_nodes, bool), np.zeros(num_nodes, bool)
    for iteration in iterations:
        for new in iteration.nodes:
            parent[new.node] = new.parent
            children[new.parent, np.sum(children[new.parent] != NONE)] = new.node
            terminal[new.node] = new.step.transition.done
        path = np.asarray(iteration.path)
        passed = path[:-1][(path[:-1] == 0) | (visit_count[path[:-1]] > 0)]
        expanded[passed] = True
        expanded[list(iteration.expanded)] = True
        for closed in iteration.closed:
            children[parent[closed]] = _without(children[parent[closed]], closed)
        visit_count[path] += 1
        value_sum[path] += np.float32(iteration.outcome)
    return {
        "parent": parent,
        "children": children,
        "visit_count": visit_count,
        "value_sum": value_sum,
        "expanded": expanded,
        "terminal": terminal,
    }


def _without(children: np.ndarray, closed: int) -> np.ndarray:
    """[W] children without one of them; NONE after the last."""
    left = [child for child in children.tolist() if child not in (NONE, closed)]
    return np.array(left + [NONE] * (len(children) - len(left)), np.int32)


def close(trees: Trees, slot: int, closed: Sequence[int]) -> Trees:
    """The trees with some nodes of one tree taken away from their parents. Seldom needed."""
    parent, children = np.asarray(trees.parent[slot]), np.array(trees.children[slot])
    for node in closed:
        children[parent[node]] = _without(children[parent[node]], node)
    return dataclasses.replace(trees, children=trees.children.at[slot].set(children))


def put(trees: Trees, slot: int, arrays: dict[str, np.ndarray]) -> Trees:
    """The trees with one slot's tree replaced."""
    return Trees(
        **{
            name: getattr(trees, name).at[slot].set(jnp.asarray(value))
            for name, value in arrays.items()
        }
    )
