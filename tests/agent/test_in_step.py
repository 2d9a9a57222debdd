"""Proposals that are scored while they are decoded, against proposing, scoring and sorting."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.agent.in_step import InStepAgent
from agentrm_jax.core.beams import BeamStep
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.chat import render
from agentrm_jax.engine.engine import Engine
from agentrm_jax.model import llama
from agentrm_jax.model.value import readout
from agentrm_jax.testing.models import (
    CONFIG,
    PROMPT,
    SAMPLING,
    SIZES,
    tiny_policy,
    tiny_state,
    tokenizer,
    weights,
)

N, WIDTH = 2, 2
HEAD = {
    "kernel": jnp.float32(np.random.default_rng(4).standard_normal(CONFIG.d_model)),
    "bias": jnp.float32(0.3),
}


@pytest.fixture(scope="module")
def in_step() -> InStepAgent:
    # Not packed: rounded more nearly as in the dense pass, which is the oracle here.
    sizes = dataclasses.replace(SIZES, extend_batch=SIZES.extend_rows * SIZES.extend_tokens)
    scorer = Engine(weights(1), CONFIG, sizes, readout=readout, head=HEAD)
    return InStepAgent(tiny_policy(), scorer)


@jax.jit
def read_out(params, head, tokens):
    positions = jnp.arange(tokens.shape[0])[None]
    hidden = llama.forward(params, CONFIG, tokens[None], positions, jnp.ones_like(positions))[0]
    return readout(head, hidden)


def dense_values(tokens: np.ndarray) -> np.ndarray:
    """In float64: in float32 its error is as large as that of the engine, up to 1.2e-5."""
    with jax.enable_x64(True):
        params, head = jax.tree.map(lambda x: np.asarray(x, np.float64), (weights(1), HEAD))
        values = read_out(params, head, tokens)
        assert values.dtype == np.float64
        return np.asarray(values)


def score_at_action(trajectory: Trajectory, token_ids: tuple[int, ...]) -> float:
    """The value at the stop token of a reply, by a forward pass over everything."""
    rendered, _ = render(tokenizer(), PROMPT, trajectory, SIZES.context - SAMPLING.max_tokens)
    tokens = [*rendered.tokens, *token_ids, tokenizer().chat.stop_token]
    padded = np.zeros(SIZES.context + 1, np.int32)
    padded[: len(tokens)] = tokens
    return float(dense_values(padded)[len(tokens) - 1])


ROOT = tiny_state(4, 0)
ASKED = [
    [(tiny_state(0, 1), "beam/1/0"), (tiny_state(0, 3), "beam/1/1")],
    [(ROOT, "beam/0/0"), (ROOT, "beam/0/1")],  # the root, beam_width times
    [(tiny_state(2, 2), "beam/5/0")],
    [(tiny_state(3, 1), "beam/2/0")],
    [(tiny_state(5, 2), "beam/1/0"), (tiny_state(5, 2), "beam/1/0")],  # twins in different places
    [(tiny_state(6, 30), "beam/30/0")],  # too long: loses its oldest steps
]
FINISHED = [[], [], [50.0], [0.1, -50.0], [], []]


def beam_step(requests, finished) -> BeamStep:
    """States that are one object are one state."""
    states = {id(state): state for state, _ in requests}
    numbers = list(states)
    return BeamStep(
        states=tuple(states.values()),
        requests=tuple((numbers.index(id(state)), purpose) for state, purpose in requests),
        finished_scores=tuple(finished),
    )


STEPS = [beam_step(*asked) for asked in zip(ASKED, FINISHED, strict=True)]


def plain(results):
    """(state or finished beam, proposal or None, score) of what is kept, and tokens decoded."""
    return [
        (
            [
                (kept.finished, None, kept.score)
                if kept.candidate is None
                else (
                    result.candidates[kept.candidate].parent,
                    result.candidates[kept.candidate].proposal,
                    kept.score,
                )
                for kept in result.kept
            ],
            result.tokens_decoded,
        )
        for result in results
    ]


def unfused(in_step: InStepAgent, requests, finished):
    numbers = list(dict.fromkeys(id(state) for state, _ in requests))
    groups = propose(in_step.agent, requests, N)
    candidates, seen = [], set()
    for (trajectory, _), group in zip(requests, groups, strict=True):
        number = numbers.index(id(trajectory))
        for proposal in group:
            if (id(trajectory), proposal.token_ids) not in seen:
                seen.add((id(trajectory), proposal.token_ids))
                score = score_at_action(trajectory, proposal.token_ids)
                candidates.append((number, proposal, score))
    candidates += [(number, None, score) for number, score in enumerate(finished)]
    decoded = sum(len(proposal.log_probs) for group in groups for proposal in group)
    return sorted(candidates, key=lambda c: -c[2])[:WIDTH], decoded


def without_log_probs(proposal):
    return proposal and dataclasses.replace(proposal, log_probs=())


def test_the_fused_step_equals_the_unfused_one(in_step):
    found = plain(in_step.propose_scored(STEPS, N, WIDTH))
    for requests, finished, (kept, decoded) in zip(ASKED, FINISHED, found, strict=True):
        expected, tokens = unfused(in_step, requests, finished)
        assert decoded == tokens
        # The unfused decoder stops after some tokens and goes on from pages: other shapes.
        assert [(number, without_log_probs(proposal)) for number, proposal, _ in kept] == [
            (number, without_log_probs(proposal)) for number, proposal, _ in expected
        ]
        for (_, proposal, _), (_, other, _) in zip(kept, expected, strict=True):
            if proposal is not None:
                np.testing.assert_allclose(proposal.log_probs, other.log_probs, atol=1e-5)
        np.testing.assert_allclose(
            [score for _, _, score in kept], [score for _, _, score in expected], atol=1e-5
        )
    [number, proposal, score] = found[2][0][0]
    assert (number, proposal, score) == (0, None, 50.0)  # a finished beam stays
    assert all(proposal.truncated_steps > 0 for _, proposal, _ in found[5][0])


def test_a_task_gets_the_same_whatever_is_asked_beside_it(in_step):
    together = in_step.propose_scored(STEPS, N, WIDTH)
    for step, expected in zip(STEPS, together, strict=True):
        assert in_step.propose_scored([step], N, WIDTH) == [expected]
    assert in_step.propose_scored([], N, WIDTH) == []


def test_another_vocabulary_is_one_clear_error(in_step):
    class Other:
        config = dataclasses.replace(CONFIG, vocab_size=999)

    with pytest.raises(UserError, match=r"score_at must be observation .* \(999\) .* \(320\)"):
        InStepAgent(in_step.agent, Other())
