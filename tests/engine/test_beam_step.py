"""The compiled beam step against decoding, scoring and selecting one after the other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import CONFIG, SAMPLING, SIZES, STOP, request, weights

from agentrm_jax.engine.beam_search import Beams, step_beams
from agentrm_jax.engine.decoder import generate
from agentrm_jax.engine.engine import Engine
from agentrm_jax.model.value import readout

WIDTH, N = 2, 2


@pytest.fixture(scope="module")
def engines():
    kernel = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))
    head = {"kernel": kernel, "bias": jnp.float32(0.5)}
    return Engine(weights(0), CONFIG, SIZES), Engine(
        weights(1), CONFIG, SIZES, readout=readout, head=head
    )


def make_beams(requests, states, finished) -> Beams:
    """The scorer's pieces are cut elsewhere."""
    whole = [np.concatenate(r.pieces) for r in requests]
    conversations = [[tokens[:3], tokens[3:]] for tokens in whole]
    return Beams(requests=requests, conversations=conversations, states=states, finished=finished)


TASKS = [
    make_beams([request(0, 9, 5), request(1, 20, 30)], [0, 1], []),
    make_beams([request(2, 18)], [0], [0.2, -50.0]),
    make_beams([request(3, 7, 3), request(3, 7, 3)], [0, 0], []),
]


def expected(policy: Engine, scorer: Engine, beams: Beams):
    """Decode, score each candidate on its own, sort."""
    candidates = []
    groups = generate(policy, beams.requests, n=N, sampling=SAMPLING, stop=STOP)
    seen = set()
    for number, (asked, state, group) in enumerate(
        zip(beams.requests, beams.states, groups, strict=True)
    ):
        for reply in group:
            if (state, reply.tokens) in seen:
                continue
            seen.add((state, reply.tokens))
            reply_piece = np.asarray([*reply.tokens, STOP], np.int32)
            [score] = scorer.score([[*asked.pieces, reply_piece]])
            candidates.append((score, number, reply.tokens))
    finished = [(score, number, None) for number, score in enumerate(beams.finished)]
    return sorted([*finished, *candidates], key=lambda c: -c[0])[:WIDTH]


def test_the_step_keeps_what_scoring_one_by_one_keeps(engines):
    policy, scorer = engines
    steps = step_beams(policy, scorer, TASKS, n=N, beam_width=WIDTH, sampling=SAMPLING, stop=STOP)
    for beams, (kept, decoded) in zip(TASKS, steps, strict=True):
        wanted = expected(policy, scorer, beams)
        assert [(k.number, k.reply and k.reply.tokens) for k in kept] == [
            (number, tokens) for _, number, tokens in wanted
        ]
        np.testing.assert_allclose([k.score for k in kept], [w[0] for w in wanted], atol=1e-4)
        assert decoded > 0


def test_equal_candidates_of_a_state_are_kept_once(engines):
    policy, scorer = engines
    twins = make_beams([request(3, 7), request(3, 7)], [0, 0], [])
    [(kept, _)] = step_beams(
        policy, scorer, [twins], n=N, beam_width=WIDTH, sampling=SAMPLING, stop=STOP
    )
    replies = [k.reply.tokens for k in kept]
    assert len(set(replies)) == len(replies)
    apart = dataclasses.replace(twins, states=[0, 1])
    [(kept, _)] = step_beams(
        policy, scorer, [apart], n=N, beam_width=WIDTH, sampling=SAMPLING, stop=STOP
    )
    assert kept[0].reply.tokens == kept[1].reply.tokens  # equal requests in different states
