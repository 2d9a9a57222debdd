"""The tree arrays against mctx, against a plain Python tree, and against their own records."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mctx._src.search import backward, simulate
from random_tree import RandomTree

from agentrm_jax.search import tree
from agentrm_jax.search.selection import PUCT, UCB
from agentrm_jax.search.tree import NONE, Trees

E, M, W = 4, 96, 3
NAMES = (
    "parent", "children", "visit_count", "value_sum", "prior_logit", "expanded", "terminal"
)  # fmt: skip


def arrays(plain: RandomTree) -> dict[str, np.ndarray]:
    n = len(plain.parent)
    out = {name: np.array(value[0]) for name, value in host(tree.make_trees(1, M, W)).items()}
    out["parent"][:n] = plain.parent
    for node, children in enumerate(plain.children):
        out["children"][node, : len(children)] = children
    out["visit_count"][:n], out["value_sum"][:n] = plain.visits, plain.total
    out["expanded"][:n], out["terminal"][:n] = plain.expanded, plain.terminal
    out["prior_logit"][:n] = plain.prior_logit
    return out


def host(trees: Trees) -> dict[str, np.ndarray]:
    return {name: np.array(getattr(trees, name)) for name in NAMES}


def stacked(plain: list[RandomTree]) -> Trees:
    each = [arrays(p) for p in plain]
    return Trees(**{name: jnp.asarray(np.stack([a[name] for a in each])) for name in NAMES})


def apply(trees: Trees, events: list) -> Trees:
    """One event of each tree, or None; the attachments and then the backups, as in a tick."""
    parent, leaf = np.full(E, NONE, np.int32), np.full(E, NONE, np.int32)
    new, terminal = np.full((E, W), NONE, np.int32), np.zeros((E, W), bool)
    logits = np.full((E, W), np.nan, np.float32)
    expands, outcome = np.zeros(E, bool), np.zeros(E, np.float32)
    for e, event in enumerate(events):
        if isinstance(event, tuple) and len(event) == 3:
            parent[e], added, expands[e] = event
            new[e, : len(added)] = [record.node for record in added]
            terminal[e, : len(added)] = [record.step.transition.done for record in added]
            logits[e, : len(added)] = [tree.prior_logit(record.step) for record in added]
        elif event is not None:
            leaf[e], outcome[e] = event
    trees = tree.attach(trees, *map(jnp.asarray, (parent, new, terminal, logits, expands)))
    return tree.backup(trees, jnp.asarray(leaf), jnp.asarray(outcome))


def grow_together(seed: int, iterations: int, cached_rollouts: bool) -> tuple[Trees, list]:
    """Trees that grow side by side, on the device and in Python; some wait at every moment."""
    rng = np.random.default_rng(seed)
    plain = [RandomTree([seed, e], W, cached_rollouts) for e in range(E)]
    trees = tree.make_trees(E, M, W)
    running = [p.grow() for p in plain]
    left = [iterations] * E
    while any(left):
        events: list = [None] * E
        for e in np.flatnonzero(left):
            if rng.random() < 0.3:
                continue
            event = next(running[e])
            if isinstance(event, tuple):
                events[e] = event
            else:
                events[e] = (event, plain[e].outcome[event])
                left[e] -= 1
                running[e] = plain[e].grow()
        trees = apply(trees, events)
    return trees, plain


@pytest.mark.parametrize("cached_rollouts", [True, False])
def test_arrays_equal_a_plain_tree(cached_rollouts):
    trees, plain = grow_together(3, 12, cached_rollouts)
    for e, p in enumerate(plain):
        for name, value in arrays(p).items():
            np.testing.assert_array_equal(host(trees)[name][e], value, name)


def test_records_rebuild_what_grew_live():
    """`from_iterations` and `put` give the arrays to the bit, whatever was in the slot before."""
    trees, plain = grow_together(5, 12, cached_rollouts=True)
    rebuilt, _ = grow_together(6, 4, cached_rollouts=True)
    for e, p in enumerate(plain):
        rebuilt = tree.put(rebuilt, e, tree.from_iterations(p.records, M, W))
    for name, value in host(trees).items():
        np.testing.assert_array_equal(host(rebuilt)[name], value, name)


def test_clear_empties_the_named_slots_only():
    trees, _ = grow_together(7, 6, cached_rollouts=True)
    before, empty = host(trees), host(tree.make_trees(E, M, W))
    after = host(tree.clear(trees, jnp.asarray([False, True, False, True])))
    for name in NAMES:
        np.testing.assert_array_equal(after[name][[0, 2]], before[name][[0, 2]], name)
        np.testing.assert_array_equal(after[name][[1, 3]], empty[name][[1, 3]], name)


def test_attach_without_a_parent_changes_nothing():
    """Not even where rows name nodes: what has no parent is dropped, and so are the other rows."""
    trees, _ = grow_together(8, 5, cached_rollouts=True)
    before = host(trees)
    nowhere = jnp.full(E, NONE, jnp.int32)
    numbers, yes = jnp.full((E, W), 50, jnp.int32), jnp.ones((E, W), bool)
    logits = jnp.zeros((E, W))
    trees = tree.attach(trees, nowhere, numbers, yes, logits, jnp.ones(E, bool))
    trees = tree.backup(trees, nowhere, jnp.ones(E))
    for name, value in host(trees).items():
        np.testing.assert_array_equal(value, before[name], name)


def test_an_expansion_without_new_children_still_expands():
    trees = tree.make_trees(1, 8, W)
    row = functools.partial(jnp.full, (1, W), dtype=jnp.int32)
    no, terminal, logits = jnp.zeros(1, bool), jnp.zeros((1, W), bool), jnp.zeros((1, W))
    cached = row(NONE).at[0, 0].set(1)
    trees = tree.attach(trees, jnp.zeros(1, jnp.int32), cached, terminal, logits, no)
    assert int(tree.select(trees, UCB(exploration=1.0))[0]) == 0  # a cached child expands nothing
    trees = tree.attach(trees, jnp.zeros(1, jnp.int32), row(NONE), terminal, logits, ~no)
    assert int(tree.select(trees, UCB(exploration=1.0))[0]) == 1


def as_mctx(trees: Trees) -> mctx.Tree:
    """The same trees in mctx's arrays; a child that was never visited is no node there."""
    t = host(trees)
    mean = t["value_sum"] / np.maximum(t["visit_count"], 1).astype(np.float32)
    rows = np.arange(E)[:, None, None]
    exists, at = t["children"] != NONE, np.maximum(t["children"], 0)
    visits = np.where(exists, t["visit_count"][rows, at], 0)
    action = np.full((E, M), NONE, np.int32)
    for e, parent, a in np.argwhere(exists):
        action[e, t["children"][e, parent, a]] = a
    fields = {
        "node_visits": t["visit_count"],
        "raw_values": mean,
        "node_values": mean,
        "parents": t["parent"],
        "action_from_parent": action,
        "children_index": np.where(visits > 0, t["children"], NONE),
        "children_prior_logits": np.where(exists, t["prior_logit"][rows, at], -np.inf),
        "children_visits": visits,
        "children_rewards": np.zeros((E, M, W), np.float32),
        "children_discounts": np.ones((E, M, W), np.float32),
        "children_values": np.where(visits > 0, mean[rows, at], 0).astype(np.float32),
        "embeddings": np.zeros((E, M), np.float32),
        "root_invalid_actions": np.zeros((E, W), np.float32),
    }
    return mctx.Tree(**jax.tree.map(jnp.asarray, fields), extra_data=None)


@jax.jit
def mctx_select(trees: mctx.Tree, exploration: jax.Array):
    def ours(rng_key, trees, node, depth):
        visits = trees.children_visits[node]
        spread = jnp.sqrt(jnp.log(trees.node_visits[node].astype(jnp.float32)) / visits)
        bound = jnp.where(visits > 0, trees.qvalues(node) + exploration * spread, jnp.inf)
        exists = trees.children_prior_logits[node] > -jnp.inf
        return jnp.argmax(jnp.where(exists, bound, -jnp.inf))

    return simulate(jax.random.split(jax.random.key(0), E), trees, ours, M)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    iterations=st.integers(1, 12),
    exploration=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
)
def test_select_equals_mctx(seed, iterations, exploration):
    plain = [RandomTree([seed, e], W, False).grown(iterations) for e in range(E)]
    trees = stacked(plain)
    chosen = np.asarray(tree.select(trees, UCB(exploration=exploration)))
    node, action = map(np.asarray, mctx_select(as_mctx(trees), jnp.float32(exploration)))
    for e, p in enumerate(plain):  # mctx names the action; a leaf without children has none
        children = p.children[node[e]]
        assert chosen[e] == (children[action[e]] if children else node[e])


@functools.partial(jax.jit, static_argnames="exploration")
def mctx_puct(trees: mctx.Tree, exploration: float):
    """mctx's own PUCT; with a base that large its exploration constant does not grow."""

    def values(trees: mctx.Tree, node: jax.Array) -> jax.Array:
        exists = trees.children_prior_logits[node] > -jnp.inf
        return jnp.where(exists, trees.qvalues(node), -jnp.inf)

    rule = functools.partial(
        mctx.muzero_action_selection,
        qtransform=values, pb_c_init=exploration, pb_c_base=1e12,
    )  # fmt: skip
    return simulate(jax.random.split(jax.random.key(0), E), trees, rule, M)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    iterations=st.integers(1, 12),
    exploration=st.sampled_from([0.0, 0.3, 1.25, 4.0]),
)
def test_puct_equals_mctx(seed, iterations, exploration):
    plain = [RandomTree([seed, e], W, False).grown(iterations) for e in range(E)]
    trees = stacked(plain)
    chosen = np.asarray(tree.select(trees, PUCT(exploration=exploration)))
    node, action = map(np.asarray, mctx_puct(as_mctx(trees), exploration))
    for e, p in enumerate(plain):
        children = p.children[node[e]]
        assert chosen[e] == (children[action[e]] if children else node[e])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_backup_equals_mctx(seed):
    """mctx keeps running means, discounts and rewards; with discount 1 and no rewards, ours."""
    plain = [RandomTree([seed, e], W).grown(6) for e in range(E)]
    leaves = np.array([p.terminal.index(True) for p in plain])
    outcomes = np.array([p.outcome[leaf] for p, leaf in zip(plain, leaves, strict=True)])
    trees = stacked(plain)
    theirs, rows = as_mctx(trees), jnp.arange(E)
    theirs = theirs.replace(  # mctx's expand counts the leaf itself
        node_visits=theirs.node_visits.at[rows, leaves].add(1),
        node_values=theirs.node_values.at[rows, leaves].set(jnp.float32(outcomes)),
    )
    theirs = jax.jit(backward)(theirs, jnp.asarray(leaves))
    ours = tree.backup(trees, jnp.int32(leaves), jnp.float32(outcomes))
    np.testing.assert_array_equal(ours.visit_count, theirs.node_visits)
    np.testing.assert_allclose(ours.value, theirs.node_values, atol=1e-6)


def test_the_first_child_wins_a_tie():
    trees = tree.make_trees(1, 8, W)
    for child in range(1, 4):
        numbers = jnp.full((1, W), NONE, jnp.int32).at[0, 0].set(child)
        trees = tree.attach(
            trees, jnp.zeros(1, jnp.int32), numbers, jnp.ones((1, W), bool), jnp.zeros((1, W)),
            jnp.ones(1, bool),
        )  # fmt: skip
    for expected in (1, 2, 3, 1):  # unvisited ones in order, then equal bounds
        assert int(tree.select(trees, UCB())[0]) == expected
        trees = tree.backup(trees, jnp.int32([expected]), jnp.ones(1))
