"""The compiled beam step against decoding, scoring and selecting one after the other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import STOP, request, weights

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import generate, score
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.engine.schedule.beams import (
    Beams,
    _Step,
    call_selection,
    prepare_selection,
    select_states,
    step_beams,
)
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.model.value import readout
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES

WIDTH, N = 2, 2


@pytest.fixture(scope="module")
def engines():
    kernel = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))
    head = {"kernel": kernel, "bias": jnp.float32(0.5)}
    return Engine(weights(0), CONFIG, SIZES), Engine(
        weights(1), CONFIG, SIZES, readout=readout, head=head
    )


def make_beams(requests, states, finished) -> Beams:
    """The scorer's segments are cut elsewhere."""
    whole = [np.concatenate(r.segments) for r in requests]
    sequences = [TokenSequence(segments=[tokens[:3], tokens[3:]]) for tokens in whole]
    return Beams(requests=requests, sequences=sequences, states=states, finished=finished)


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
            ended = np.asarray([*reply.tokens, STOP], np.int32)
            [value] = score(scorer, [TokenSequence(segments=[*asked.segments, ended])])
            candidates.append((value, number, reply.tokens))
    finished = [(value, number, None) for number, value in enumerate(beams.finished)]
    return sorted([*finished, *candidates], key=lambda c: -c[0])[:WIDTH]


def test_the_step_keeps_what_scoring_one_by_one_keeps(engines):
    policy, scorer = engines
    steps = step_beams(
        policy, scorer, TASKS, n=N, beam_width=WIDTH, sampling=SAMPLING, stops=(STOP,)
    )
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
        policy, scorer, [twins], n=N, beam_width=WIDTH, sampling=SAMPLING, stops=(STOP,)
    )
    replies = [k.reply.tokens for k in kept]
    assert len(set(replies)) == len(replies)
    apart = dataclasses.replace(twins, states=[0, 1])
    [(kept, _)] = step_beams(
        policy, scorer, [apart], n=N, beam_width=WIDTH, sampling=SAMPLING, stops=(STOP,)
    )
    assert kept[0].reply.tokens == kept[1].reply.tokens  # equal requests in different states


def test_the_step_makes_no_trip_to_the_host(engines):
    policy, scorer = engines
    step = _Step(policy, scorer, TASKS, 4, N, WIDTH)
    _, beams, plan = step.prepare(SAMPLING, Stopping(tokens=(STOP,)))
    with jax.transfer_guard("disallow"):
        choice, _, _ = policy.programs.decode_select(scorer.programs, beams, plan)
        jax.block_until_ready(choice)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            policy.programs.decode_select(scorer.programs, jax.device_get(beams), plan)


STATES = [
    ([request(seed, 9, 6, length) for length in (3, 5, 8)], finished)
    for seed, finished in ((40, []), (41, [0.2, -50.0]), (42, [60.0]))
]


def test_selecting_new_states_equals_scoring_and_sorting(engines):
    """States with a common prefix, finished beams, and states that were read before."""
    _, scorer = engines
    tasks = [*STATES, ([request(43, 7), request(43, 7, 4)], [])]
    for _ in range(2):
        chosen = select_states(scorer, tasks, n=N, beam_width=WIDTH)
        for (states, finished), found in zip(tasks, chosen, strict=True):
            scores = [*enumerate(finished), *enumerate(score(scorer, states), start=WIDTH)]
            wanted = sorted(scores, key=lambda one: -one[1])
            assert [number for number, _ in found] == [number for number, _ in wanted]
            np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], atol=1e-5)


def test_selection_makes_no_trip_to_the_host(engines):
    _, scorer = engines
    fresh = Engine(weights(1), CONFIG, SIZES, readout=readout, head=scorer.programs.model.head)
    leaves = [list(map(fresh.cache.find, states)) for states, _ in STATES]
    finished = [scores for _, scores in STATES]
    candidates, groups = prepare_selection(fresh, leaves, finished, N, WIDTH)
    assert groups  # there is something to read
    with jax.transfer_guard("disallow"):  # what is fetched in the end is fetched explicitly
        choice = call_selection(fresh, candidates, groups)
    assert choice.selected.shape == (SIZES.extend_rows, WIDTH)
