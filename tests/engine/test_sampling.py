"""Sampling against NumPy and against the probabilities."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.programs.sampling import Filter, Sampling, keep, largest, sample

V = 8
FILTERS = [
    Filter(),
    Filter(top_k=1),
    Filter(top_k=3),
    Filter(top_k=100),
    Filter(top_p=0.5),
    Filter(top_p=0.9),
    Filter(min_p=0.2),
    Filter(top_k=5, top_p=0.8, min_p=0.05),
]
jitted_keep = jax.jit(keep, static_argnums=1)
jitted_sample = jax.jit(sample, static_argnums=3)


def kept_by_hand(logits: np.ndarray, filter: Filter) -> tuple[np.ndarray, float]:
    """Which tokens stay, one filter after the other; and how close the closest decision was."""
    stay, margin = np.ones(V, bool), np.inf
    if filter.top_k:
        stay &= logits >= np.sort(logits)[::-1][min(filter.top_k, V) - 1]
    if filter.top_p < 1:
        weights = np.where(stay, np.exp(logits - logits.max()), 0)
        weights /= weights.sum()
        reached, least = 0.0, np.inf
        for token in np.argsort(-logits, kind="stable"):
            if weights[token] == 0:
                continue
            margin = min(margin, abs(reached - filter.top_p))
            if reached < filter.top_p:
                least = logits[token]
            reached += weights[token]
        stay &= logits >= least
    if filter.min_p > 0:
        shares = np.exp(logits - logits.max())
        margin = min(margin, np.abs(shares - filter.min_p).min())
        stay &= shares >= filter.min_p
    return stay, margin


# Eighths: equal logits come up, so that ties are tried.
some_logits = st.lists(st.integers(-30, 30).map(lambda x: x / 8), min_size=V, max_size=V)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@settings(max_examples=40, deadline=None)
@given(logits=some_logits)
def test_filters_keep_what_numpy_keeps(filter, logits):
    logits = np.asarray(logits, np.float32)
    stay, margin = kept_by_hand(logits.astype(np.float64), filter)
    assume(margin > 1e-5)  # float32 may decide a draw either way
    kept = np.asarray(jitted_keep(logits, filter))
    np.testing.assert_array_equal(np.isfinite(kept), stay)
    np.testing.assert_array_equal(kept[stay], logits[stay])
    assert stay[logits.argmax()]


def draws(logits, n: int, temperature: float, filter: Filter):
    keys = jax.random.split(jax.random.key(3), n)
    rows = jnp.tile(jnp.float32(logits), (n, 1))
    return map(np.asarray, jitted_sample(keys, rows, jnp.full(n, temperature), filter))


@pytest.mark.parametrize(
    ("temperature", "filter"),
    [(1.0, Filter()), (0.7, Filter()), (2.0, Filter()), (1.0, Filter(top_k=4, top_p=0.97))],
)
def test_samples_follow_the_probabilities(temperature, filter):
    """Pearson's chi-square with a fixed seed, below its 99.9 % quantile."""
    n, logits = 8000, np.linspace(0.0, 2.0, 6, dtype=np.float32)
    tokens, log_probs = draws(logits, n, temperature, filter)
    expected = np.asarray(jax.nn.softmax(keep(jnp.asarray(logits / temperature), filter)))
    counts, alive = np.bincount(tokens, minlength=6), expected > 0
    assert counts[~alive].sum() == 0
    statistic = np.sum((counts - n * expected)[alive] ** 2 / (n * expected[alive]))
    quantile = {4: 16.27, 6: 20.52}[int(alive.sum())]  # of 3 and 5 degrees of freedom
    assert statistic < quantile
    # Log-probabilities are those of temperature 1, before any filter.
    np.testing.assert_allclose(log_probs, np.asarray(jax.nn.log_softmax(logits))[tokens], atol=1e-6)


@pytest.mark.parametrize("filter", [Filter(), Filter(top_k=4, top_p=0.97)])
def test_temperature_zero_takes_the_likeliest(filter):
    logits = np.float32([0.0, 3.0, 1.0, 3.0, -2.0, 2.999])
    tokens, log_probs = draws(logits, 8000, 0.0, filter)
    assert set(tokens.tolist()) == {1}  # the first of equals
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits)[1], atol=1e-6)


def test_of_equals_the_first_is_the_largest():
    x = np.asarray([[1.0, 3.0, 3.0, 2.0], [-np.inf, -2.0, -5.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(jax.jit(largest)(jnp.asarray(x)), x.argmax(axis=-1))


def test_a_row_depends_on_its_own_key_and_logits():
    keys = jax.random.split(jax.random.key(0), 16)
    logits = jax.random.normal(jax.random.key(1), (16, V))
    draw = functools.partial(jitted_sample, filter=Filter())
    tokens, _ = draw(keys, logits, jnp.ones(16))
    backwards, _ = draw(keys[::-1], logits[::-1], jnp.ones(16))
    np.testing.assert_array_equal(tokens, backwards[::-1])


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": -1}, {"max_tokens": 0}],
)
def test_a_sampling_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
