"""The explicit scorer against a forward pass for each state, and random scores."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.chat import render
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.model import llama
from agentrm_jax.model.value import readout
from agentrm_jax.reward.explicit import ExplicitScorer
from agentrm_jax.reward.random import RandomScorer
from agentrm_jax.testing.models import CONFIG, PROMPT, SIZES, drawn, tiny_state


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["You see a key.", "Action: turn left"], CONFIG.vocab_size)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    trunk = drawn(rng)
    kernel = rng.standard_normal(CONFIG.d_model) / CONFIG.d_model
    return {
        "trunk": trunk,
        "value_head": {"kernel": jnp.float32(kernel), "bias": jnp.float32(0.4)},
    }


@jax.jit
def dense_values(params, tokens):
    positions = jnp.arange(tokens.shape[0])[None]
    ones = jnp.ones_like(positions)
    hidden = llama.forward(params["trunk"], CONFIG, tokens[None], positions, ones)[0]
    return readout(params["value_head"], hidden)


def dense_score(params, tokenizer, trajectory: Trajectory) -> float:
    rendered, _ = render(tokenizer, PROMPT, trajectory, SIZES.context)
    padded = np.zeros(SIZES.context, np.int32)
    padded[: len(rendered.tokens)] = rendered.tokens
    return float(dense_values(params, padded)[len(rendered.tokens) - 1])


def make_scorer(params, tokenizer, sizes: EngineConfig = SIZES) -> ExplicitScorer:
    engine = Engine(
        params["trunk"], CONFIG, sizes, readout=readout, head=params["value_head"]
    )  # fmt: skip
    return ExplicitScorer(engine, Renderer(tokenizer, lambda task: PROMPT, sizes.context))


# Whole paths and their prefixes, one state twice, one that loses steps, a group without any.
GROUPS = [
    [tiny_state(0, n) for n in range(4)],
    [tiny_state(1, 2), tiny_state(1, 5), tiny_state(1, 2)],
    [],
    [tiny_state(2, 30)],
    [tiny_state(n, 3) for n in range(3, 9)],
]


def test_scores_equal_a_forward_pass_for_each_state(params, tokenizer):
    scores = make_scorer(params, tokenizer).score(GROUPS)
    assert [len(group) for group in scores] == [len(group) for group in GROUPS]
    for group, own in zip(GROUPS, scores, strict=True):
        expected = [dense_score(params, tokenizer, trajectory) for trajectory in group]
        np.testing.assert_allclose(own, expected, atol=1e-5)
    flat = [score for group in scores for score in group]
    assert len({round(score, 3) for score in flat}) > 8  # they do tell states apart


def test_a_small_cache_changes_no_score(params, tokenizer):
    """Pages are given up and read again between batches: equal to the bit, in any order."""
    large = make_scorer(params, tokenizer)
    small = make_scorer(params, tokenizer, dataclasses.replace(SIZES, cache_tokens=600))
    scores = large.score(GROUPS)
    assert small.score(GROUPS) == scores
    assert small.score(GROUPS[::-1]) == large.score(GROUPS[::-1]) == scores[::-1]
    assert small.engine.usage.read > large.engine.usage.read


def test_states_that_were_scored_are_not_read_again(params, tokenizer):
    scorer = make_scorer(params, tokenizer)
    scores = scorer.score(GROUPS)
    read = scorer.engine.usage.read
    assert scorer.score(GROUPS[::-1]) == scores[::-1]
    assert scorer.engine.usage.read == read


def test_random_scores_depend_on_seed_task_and_replies_alone():
    scores = RandomScorer(0).score(GROUPS)
    assert RandomScorer(0).score(GROUPS[::-1]) == scores[::-1]
    assert scores[1][0] == scores[1][2]  # the same state
    flat = [score for group in scores for score in group]
    assert all(0 <= score < 1 for score in flat)
    assert len(set(flat)) == len(flat) - 1
    assert all(
        a != b
        for group, other in zip(scores, RandomScorer(1).score(GROUPS), strict=True)
        for a, b in zip(group, other, strict=True)
    )


def test_random_scores_are_spread_evenly():
    [scores] = RandomScorer(3).score([[tiny_state(n, 1) for n in range(2000)]])
    shares = np.histogram(scores, bins=5, range=(0, 1))[0] / 2000
    np.testing.assert_allclose(shares, 0.2, atol=0.036)  # 4 standard errors
