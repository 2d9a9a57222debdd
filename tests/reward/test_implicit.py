"""The implicit scorer against one forward pass for each trajectory and model."""

from __future__ import annotations

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.data.chat import render
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer
from agentrm_jax.model import llama
from agentrm_jax.reward.implicit import REDUCTIONS, ImplicitScorer, ImplicitSettings
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG, PROMPT, drawn, tiny_state

BETA, LIMIT = 0.1, 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["You see a key.", "Action: turn left"], CONFIG.vocab_size)


@pytest.fixture(scope="module")
def models():
    """Stacked layers, as a forward pass wants them."""
    return drawn(np.random.default_rng(0)), drawn(np.random.default_rng(1))


def make_scorer(models, tokenizer, limit=LIMIT, **changed) -> ImplicitScorer:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    settings = ImplicitSettings(beta=BETA, limit=limit, mesh=mesh, **changed)
    return ImplicitScorer(*models, CONFIG, tokenizer, lambda task: PROMPT, settings)


@jax.jit
def dense_log_probs(params, tokens):
    positions = jnp.arange(tokens.shape[0])[None]
    hidden = llama.forward(params, CONFIG, tokens[None], positions, jnp.ones_like(positions))
    return jax.nn.log_softmax(llama.logits(params, CONFIG, hidden)[0])


def slow_step_rewards(models, tokenizer, trajectory, limit=LIMIT) -> list[float]:
    rendered, _ = render(tokenizer, PROMPT, trajectory, limit)
    padded = np.zeros(LIMIT, np.int32)
    padded[: len(rendered.tokens)] = rendered.tokens
    trained, before = (np.asarray(dense_log_probs(params, padded)) for params in models)
    return [
        BETA * sum(float((trained - before)[t - 1, padded[t]]) for t in range(*span))
        for span in rendered.reply_spans
    ]


GROUPS = [[tiny_state(0, 3), tiny_state(0, 1), tiny_state(0, 0)], [tiny_state(5, 2)]]


REDUCED = {"sum": sum, "mean": statistics.fmean, "min": min, "max": max, "last": lambda s: s[-1]}


@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_scores_are_those_of_whole_forward_passes(models, tokenizer, reduction):
    scorer = make_scorer(models, tokenizer, reduction=reduction, rows=2)
    found = scorer.score(GROUPS)
    for group, scores in zip(GROUPS, found, strict=True):
        for trajectory, score in zip(group, scores, strict=True):
            steps = slow_step_rewards(models, tokenizer, trajectory)
            wanted = REDUCED[reduction](steps) if steps else 0.0
            assert score == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_company_changes_nothing(models, tokenizer):
    scorer = make_scorer(models, tokenizer)
    together = scorer.score(GROUPS)[0][0]
    assert scorer.score([[GROUPS[0][0]]])[0][0] == pytest.approx(together, abs=1e-5)


def test_states_without_steps_score_nothing(models, tokenizer):
    assert make_scorer(models, tokenizer).score([[tiny_state(0, 0)], []]) == [[0.0], []]


def test_long_trajectories_lose_their_oldest_steps(models, tokenizer):
    long = tiny_state(1, 4)
    limit = len(render(tokenizer, PROMPT, long)[0].tokens) - 1
    kept = slow_step_rewards(models, tokenizer, long, limit)
    assert 0 < len(kept) < 4
    [[score]] = make_scorer(models, tokenizer, limit).score([[long]])
    assert score == pytest.approx(sum(kept), rel=1e-4, abs=1e-5)


def test_both_models_read_every_token(models, tokenizer):
    scorer = make_scorer(models, tokenizer)
    scorer.score([[tiny_state(2, 3)]])
    assert scorer.cost([tiny_state(2, 3)]) == scorer.tokens_read
    assert scorer.tokens_read == 2 * len(render(tokenizer, PROMPT, tiny_state(2, 3))[0].tokens)


def test_a_reference_of_another_shape(models, tokenizer):
    """Any two policies with one vocabulary have a log-ratio."""
    shape = dataclasses.replace(CONFIG, num_layers=1)
    small = {**models[1], "layers": jax.tree.map(lambda leaf: leaf[:1], models[1]["layers"])}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    settings = ImplicitSettings(beta=1.0, limit=LIMIT, mesh=mesh)

    def scorer(policy, reference, config, reference_config):
        return ImplicitScorer(
            policy, reference, config, tokenizer, lambda task: PROMPT, settings, reference_config
        )

    over_small = scorer(models[0], small, CONFIG, shape).score(GROUPS)
    under_small = scorer(small, models[0], shape, CONFIG).score(GROUPS)
    flat = [score for group in over_small for score in group]
    assert flat == pytest.approx([-score for group in under_small for score in group], abs=1e-4)
    assert max(map(abs, flat)) > 1
