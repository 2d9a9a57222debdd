"""Selection rules against their formulas, and what a rule of one's own needs."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.search import tree
from agentrm_jax.search.selection import (
    PUCT,
    SELECTION_RULES,
    UCB,
    Children,
    priors,
    register_selection_rule,
)


def children(value, visits, parent_visits, prior=0.5) -> Children:
    """One child of one tree."""
    return Children(
        value=jnp.full((1, 1), value, jnp.float32),
        prior=jnp.full((1, 1), prior, jnp.float32),
        visits=jnp.full((1, 1), visits, jnp.int32),
        present=jnp.ones((1, 1), bool),
        parent_visits=jnp.full((1, 1), parent_visits, jnp.int32),
    )


def test_ucb_check_value():
    """V = 0.6, N = 10, N_parent = 100, c = 0.5 gives 0.9393."""
    score = float(UCB(exploration=0.5)(children(0.6, 10, 100))[0, 0])
    assert score == pytest.approx(0.6 + 0.5 * math.sqrt(math.log(100) / 10), abs=1e-6)
    assert score == pytest.approx(0.9393, abs=1e-4)


def test_puct_check_value():
    """V = 0.6, P = 0.25, N = 4, N_parent = 100, c = 1.25 gives 0.6 + 1.25 * 0.25 * 10 / 5."""
    score = float(PUCT()(children(0.6, 4, 100, 0.25))[0, 0])
    assert score == pytest.approx(1.225, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    value=st.floats(0, 1, width=32, allow_subnormal=False),
    visits=st.integers(0, 1000),
    more=st.integers(0, 1000),
    exploration=st.one_of(st.just(0.0), st.floats(1e-6, 10.0)),
    prior=st.floats(0, 1, width=32, allow_subnormal=False),
)
def test_rules_equal_their_formulas(value, visits, more, exploration, prior):
    child = children(value, visits, visits + more, prior)
    ucb, puct = (float(rule(exploration=exploration)(child)[0, 0]) for rule in (UCB, PUCT))
    if visits == 0:
        assert ucb == math.inf
    else:
        expected = value + exploration * math.sqrt(math.log(visits + more) / visits)
        assert ucb == pytest.approx(expected, rel=1e-5, abs=1e-6)
    bonus = prior * math.sqrt(max(visits + more, 1)) / (1 + visits)
    assert puct == pytest.approx(value + exploration * bonus, rel=1e-5, abs=1e-6)


def test_priors_are_renormalised_over_the_children_of_a_node():
    nan = np.nan
    logits = np.array([[-1.0, -2.0, nan], [nan, nan, nan], [-1.0, nan, -2.0]], np.float32)
    present = np.array([[True, True, False], [True, True, False], [True, True, True]])
    found = np.asarray(priors(jnp.asarray(logits), jnp.asarray(present)))
    first = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    middle = np.exp([-1, -1.5, -2]) / np.exp([-1, -1.5, -2]).sum()
    np.testing.assert_allclose(found, [[first, 1 - first, 0], [0.5, 0.5, 0], middle], rtol=1e-6)


def rooted(logits) -> tree.Trees:
    """A tree of an unvisited, expanded root and its children."""
    number = len(logits)
    trees = tree.make_trees(1, number + 1, number)
    return tree.attach(
        trees,
        jnp.zeros(1, jnp.int32),
        jnp.arange(1, number + 1, dtype=jnp.int32)[None],
        jnp.ones((1, number), bool),
        jnp.asarray([logits], jnp.float32),
        jnp.ones(1, bool),
    )


def test_puct_enters_the_most_probable_child_first():
    trees = rooted([-2.0, -0.5, -1.0])
    assert int(tree.select(trees, PUCT())[0]) == 2
    assert int(tree.select(trees, UCB())[0]) == 1
    assert int(tree.select(rooted([np.nan] * 3), PUCT())[0]) == 1  # equal priors: the first one


def test_a_plain_function_is_a_rule():
    def least_probable(children: Children):
        return -children.prior

    assert int(tree.select(rooted([-2.0, -0.5, -1.0]), least_probable)[0]) == 1
    assert int(tree.select(rooted([-1.0, -0.5, -2.0]), least_probable)[0]) == 3


def test_rules_are_found_by_name():
    assert SELECTION_RULES.load("ucb") is UCB
    assert SELECTION_RULES.load("puct") is PUCT
    assert SELECTION_RULES.name_of(PUCT) == "puct"

    @register_selection_rule("greedy_for_test")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Greedy:
        def __call__(self, children: Children, /):
            return children.value

    assert SELECTION_RULES.load("greedy_for_test") is Greedy
    assert int(tree.select(rooted([-1.0, -1.0]), Greedy())[0]) == 1
    with pytest.raises(UserError, match=r"unknown selection rule .*puct"):
        SELECTION_RULES.load("puctt")


def test_exploration_is_checked():
    for rule in (UCB, PUCT):
        with pytest.raises(UserError, match="exploration must be at least 0"):
            rule(exploration=-1.0)
