"""The engine against `SimpleEngine`, which runs a forward pass over whole sequences."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from engine_cases import (
    REQUESTS,
    SMALL,
    STOP,
    assert_same_replies,
    request,
    segments,
    simple,
    weights,
)

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache.tables import TableRows
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import generate, score
from agentrm_jax.engine.programs.decode import decode
from agentrm_jax.engine.request import Request, TokenSequence
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES


@pytest.fixture(scope="module")
def params():
    return weights(0)


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLING,
        dataclasses.replace(SAMPLING, temperature=0.0),
        dataclasses.replace(SAMPLING, temperature=0.7, top_k=9, top_p=0.9, min_p=0.01),
    ],
    ids=["sampled", "greedy", "filtered"],
)
def test_replies_equal_those_of_full_forward_passes(params, sampling):
    engine = Engine(params, CONFIG, SIZES)
    found = generate(engine, REQUESTS, n=2, sampling=sampling, stop=STOP)
    wanted = simple(0).generate(REQUESTS, n=2, sampling=sampling, stop=STOP)
    assert_same_replies(found, wanted)
    assert {reply.stopped for group in wanted for reply in group} == {False, True}
    assert engine.usage.decoded > 0


def test_a_request_gets_the_same_reply_whatever_is_asked_beside_it(params):
    """To the bit: alone, among others, in another order, and with a full cache."""
    together = generate(Engine(params, CONFIG, SIZES), REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
    engine = Engine(params, CONFIG, SIZES)
    for given, expected in reversed(list(zip(REQUESTS, together, strict=True))):
        assert generate(engine, [given], n=2, sampling=SAMPLING, stop=STOP) == [expected]
    assert generate(engine, REQUESTS[::-1], n=2, sampling=SAMPLING, stop=STOP) == together[::-1]


def test_a_long_conversation_beside_it_changes_nothing(params):
    """To the bit, though the batch is decoded by another program, with room for more pages."""
    config = dataclasses.replace(CONFIG, max_positions=1024)
    sizes = dataclasses.replace(SIZES, context=1024, extend_tokens=64, max_segments=8)
    engine = Engine(params, config, sizes)
    short, *long = request(0, 9, 5), *(request(i, 700) for i in (1, 2, 3))
    [alone] = generate(engine, [short], n=2, sampling=SAMPLING, stop=STOP)
    programs = decode._cache_size()
    fresh = Engine(params, config, sizes)
    # so that they enter together
    heads = [TokenSequence(segments=[other.segments[0][:-1]]) for other in long]
    fresh.prefill.run(list(map(fresh.cache.find, heads)))
    together = generate(fresh, [short, *long], n=2, sampling=SAMPLING, stop=STOP)
    assert together[0] == alone
    assert decode._cache_size() == programs + 1


def test_panels_change_the_last_bits_alone(params, monkeypatch):
    engine, plain = Engine(params, CONFIG, SIZES), Engine(params, CONFIG, SIZES)
    monkeypatch.setenv("NPROC", "2")
    assert plain.programs.params_for(8) is plain.programs.model.params
    monkeypatch.setenv("NPROC", "1")
    assert engine.programs.params_for(8) is not engine.programs.model.params
    assert engine.programs.params_for(32) is engine.programs.model.params
    found, wanted = (
        generate(e, REQUESTS, n=2, sampling=SAMPLING, stop=STOP) for e in (engine, plain)
    )
    for ours, theirs in zip(*map(itertools.chain.from_iterable, (found, wanted)), strict=True):
        assert (ours.tokens, ours.stopped) == (theirs.tokens, theirs.stopped)
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=2e-5)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_no_number_of_branches_makes_places_differ(params, n):
    """15 rows, three branches for each of five, gave other last bits than 16."""
    requests = [request(seed, 9, 4 + seed) for seed in range(7)]
    engine = Engine(params, CONFIG, dataclasses.replace(SIZES, decode_rows=15))
    expected = generate(engine, requests, n=n, sampling=SAMPLING, stop=STOP)
    for first in (3, 5):
        moved = [*requests[first:], *requests[:first]]
        replies = generate(
            Engine(params, CONFIG, engine.sizes), moved, n=n, sampling=SAMPLING, stop=STOP
        )
        assert replies == [*expected[first:], *expected[:first]]


def test_a_small_cache_evicts_and_changes_nothing(params):
    requests = [request(seed, 20, 13, 6) for seed in range(12)]
    large = Engine(params, CONFIG, SIZES)
    small = Engine(params, CONFIG, SMALL)
    for _ in range(2):
        expected = generate(large, requests, n=2, sampling=SAMPLING, stop=STOP)
        assert generate(small, requests, n=2, sampling=SAMPLING, stop=STOP) == expected
    assert small.usage.read > large.usage.read  # it had to read again
    # The last token before a reply is read by decoding it.
    assert large.usage.read == sum(r.length - 1 for r in requests)


def test_a_cache_that_cannot_hold_one_call_says_what_it_needs(params):
    engine = Engine(params, CONFIG, dataclasses.replace(SIZES, cache_tokens=60))
    with pytest.raises(UserError, match=r"engine\.cache_tokens must be at least 124 .* \(got 60\)"):
        generate(engine, [REQUESTS[2]], n=2, sampling=SAMPLING, stop=STOP)


def test_common_beginnings_are_read_once(params):
    engine = Engine(params, CONFIG, SIZES)
    prompt = segments(9, 24)
    requests = [
        Request(segments=[*prompt, *segments(i, 6)], key=np.zeros(2, np.uint32)) for i in range(4)
    ]
    generate(engine, requests, n=2, sampling=SAMPLING, stop=STOP)
    assert engine.usage.read == 24 + 4 * 5


@pytest.mark.parametrize("instruction_tokens", [64, 16], ids=["room", "room for one"])
def test_shared_prefixes_are_stored_and_read_once(params, instruction_tokens):
    """Two environments' tasks in one batch; without room, prefixes are as other segments."""
    sizes = dataclasses.replace(SIZES, instruction_tokens=instruction_tokens)
    engine = Engine(params, CONFIG, sizes)
    first, second = segments(9, 11, 21)
    requests = [
        dataclasses.replace(
            given, segments=[(first, second)[i % 2], *given.segments], shared_prefix=True
        )
        for i, given in enumerate(REQUESTS)
    ]
    found = generate(engine, requests, n=2, sampling=SAMPLING, stop=STOP)
    assert_same_replies(found, simple(0).generate(requests, n=2, sampling=SAMPLING, stop=STOP))
    assert engine.usage.read == 11 + 21 + sum(r.length - 1 for r in REQUESTS)
    heads = [TokenSequence(segments=r.segments[:-1]) for r in requests]
    leaves = list(map(engine.cache.find, heads))
    rows = TableRows(4, range(4), [(leaf, leaf.end) for leaf in leaves])
    context = engine.tables.context(rows)
    shared = 11 if instruction_tokens == 16 else 11 + 21
    assert context.shared.fills.sum() == shared  # once, for two sequences each
    assert context.own.fills.sum() == sum(leaf.end for leaf in leaves) - 2 * shared


def test_scores_equal_those_of_full_forward_passes(params):
    head = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))

    def readout(head, hidden):
        return hidden @ head

    engine = Engine(params, CONFIG, SIZES, readout=readout, head=head)
    sequences = [*REQUESTS, TokenSequence(segments=REQUESTS[2].segments[:3])]
    scores = score(engine, sequences)
    wanted = simple(0, readout=readout, head=head).score(sequences)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    read = engine.usage.read
    assert score(engine, sequences) == scores
    assert engine.usage.read == read  # told from memory


@pytest.mark.parametrize("siblings", [1, 2])
@pytest.mark.parametrize("batch", [16, 40, 64], ids=["least", "packed", "not packed"])
def test_segments_are_packed_into_calls_and_read_as_in_full_forward_passes(params, batch, siblings):
    """Segments of all lengths up to a row's: as many of them in a call as there is room for."""
    sizes = dataclasses.replace(SIZES, extend_batch=batch, siblings=siblings)
    head = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))

    def readout(head, hidden):
        return hidden @ head

    engine = Engine(params, CONFIG, sizes, readout=readout, head=head)
    shared = segments(40, 9)
    sequences = [
        TokenSequence(segments=[*shared, *segments(i, length)])
        for i, length in enumerate(range(1, 17))
    ]
    calls: list[list[int]] = []
    record = engine.prefill.record

    def counted(groups, readouts):
        calls.append([len(engine.cache.next_chunk(node)) for group in groups for node in group])
        record(groups, readouts)

    engine.prefill.record = counted
    scores = score(engine, sequences)
    wanted = simple(0, readout=readout, head=head).score(sequences)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    room = max(batch, siblings * sizes.extend_tokens)
    assert all(sum(lengths) <= room and len(lengths) <= sizes.extend_rows for lengths in calls)
    assert sum(map(sum, calls)) == engine.usage.read
    left = calls[1:]
    for lengths, after in itertools.pairwise(left):  # no call leaves room for what comes next
        more = len(lengths) + siblings > sizes.extend_rows
        assert more or sum(lengths) + sum(after[:siblings]) > room


def test_sizes_of_packing_are_checked():
    for name in ("extend_batch", "extend_tokens"):
        with pytest.raises(UserError, match=rf"^{name} must be a multiple of page_size, 4"):
            dataclasses.replace(SIZES, **{name: 6})


def test_context_that_is_too_short_is_one_clear_error(params):
    engine = Engine(params, CONFIG, SIZES)
    with pytest.raises(
        UserError, match=r"engine\.context must be at least 260 for a sequence of 250 tokens"
    ):
        generate(engine, [request(0, 250)], n=1, sampling=SAMPLING, stop=STOP)
    with pytest.raises(UserError, match=r"^engine\.context must be at most 512, the longest input"):
        Engine(params, CONFIG, dataclasses.replace(SIZES, context=1024))


def test_requests_of_lower_rank_go_first(params):
    engine = Engine(params, CONFIG, dataclasses.replace(SIZES, decode_rows=2))
    scheduler = Scheduler(engine, SAMPLING, Stopping(tokens=(STOP,)), (2, 1))
    ranks = {
        scheduler.submit(request(i, 5), 1 + i % 2, rank): rank
        for i, rank in enumerate((2, 0, 1, 0))
    }
    assert scheduler.room() == 0
    done: list[float] = []
    while len(done) < 4:
        done += sorted(ranks[ticket] for ticket, _ in scheduler.collect())
    assert done == sorted(done)
    assert scheduler.room() == 2
