"""The engine against dense attention over whole sequences."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import REQUESTS, SMALL, STOP, conversation, dense_last, request, weights
from tiny_model import CONFIG, SAMPLING, SIZES

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.decode import decode
from agentrm_jax.engine.programs.sampling import Sampling, sample
from agentrm_jax.engine.schedule.scheduler import Decoder, Request, generate
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.model import llama


@pytest.fixture(scope="module")
def params():
    return weights(0)


@jax.jit
def dense_logits(params, hidden):
    return llama.logits(params, CONFIG, hidden)[None]


def dense_reply(params, request: Request, branch: int, sampling: Sampling):
    """One reply, a whole forward pass for each token."""
    pieces = list(request.pieces)
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(request.key)), branch)
    draw = jax.jit(sample, static_argnums=3)
    found, log_probs = [], []
    for t in range(sampling.max_tokens):
        logits = dense_logits(params, dense_last(params, pieces))
        temperature = jnp.full(1, sampling.temperature)
        token, log_prob = draw(
            jax.random.fold_in(key, t)[None], logits, temperature, sampling.filter
        )
        log_probs.append(float(log_prob[0]))
        if int(token[0]) == STOP:
            break
        found.append(int(token[0]))
        pieces.append(np.asarray(token))
    return tuple(found), log_probs


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLING,
        dataclasses.replace(SAMPLING, temperature=0.0),
        dataclasses.replace(SAMPLING, temperature=0.7, top_k=9, top_p=0.9, min_p=0.01),
    ],
    ids=["sampled", "greedy", "filtered"],
)
def test_replies_equal_dense_decoding(params, sampling):
    engine = Engine(params, CONFIG, SIZES)
    stopped = []
    for given, group in zip(
        REQUESTS, generate(engine, REQUESTS, n=2, sampling=sampling, stop=STOP), strict=True
    ):
        for branch, reply in enumerate(group):
            tokens, log_probs = dense_reply(params, given, branch, sampling)
            assert reply.tokens == tokens
            np.testing.assert_allclose(reply.log_probs, log_probs, atol=1e-4)
            assert reply.stopped == (len(log_probs) == len(tokens) + 1)
            stopped.append(reply.stopped)
    assert set(stopped) == {False, True}  # both ends occur
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
    sizes = dataclasses.replace(SIZES, context=1024, extend_tokens=64, max_pieces=8)
    engine = Engine(params, config, sizes)
    short, *long = request(0, 9, 5), *(request(i, 700) for i in (1, 2, 3))
    [alone] = generate(engine, [short], n=2, sampling=SAMPLING, stop=STOP)
    programs = decode._cache_size()
    fresh = Engine(params, config, sizes)
    # so that they enter together
    fresh.read([fresh.cache.find([other.pieces[0][:-1]]) for other in long])
    together = generate(fresh, [short, *long], n=2, sampling=SAMPLING, stop=STOP)
    assert together[0] == alone
    assert decode._cache_size() == programs + 1


def test_panels_change_the_last_bits_alone(params, monkeypatch):
    engine, plain = Engine(params, CONFIG, SIZES), Engine(params, CONFIG, SIZES)
    monkeypatch.setenv("NPROC", "2")
    assert plain.params_for(8) is plain.params
    monkeypatch.setenv("NPROC", "1")
    assert engine.params_for(8) is not engine.params
    assert engine.params_for(32) is engine.params
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
    assert large.usage.read == sum(sum(map(len, r.pieces)) - 1 for r in requests)


def test_a_cache_that_cannot_hold_one_call_says_what_it_needs(params):
    engine = Engine(params, CONFIG, dataclasses.replace(SIZES, cache_tokens=60))
    with pytest.raises(UserError, match=r"^engine\.cache_tokens must be at least 124 "):
        generate(engine, [REQUESTS[2]], n=2, sampling=SAMPLING, stop=STOP)


def test_common_beginnings_are_read_once(params):
    engine = Engine(params, CONFIG, SIZES)
    prompt = conversation(9, 24)
    requests = [
        Request(pieces=[*prompt, *conversation(i, 6)], key=np.zeros(2, np.uint32)) for i in range(4)
    ]
    generate(engine, requests, n=2, sampling=SAMPLING, stop=STOP)
    assert engine.usage.read == 24 + 4 * 5


@pytest.mark.parametrize("instruction_tokens", [64, 16], ids=["room", "room for one"])
def test_instructions_are_stored_and_read_once(params, instruction_tokens):
    """Two environments' tasks in one batch; where there is no room, they are as other pieces."""
    sizes = dataclasses.replace(SIZES, instruction_tokens=instruction_tokens)
    engine = Engine(params, CONFIG, sizes)
    first, second = conversation(9, 11, 21)
    requests = [
        dataclasses.replace(given, pieces=[piece, *given.pieces])
        for i, given in enumerate(REQUESTS)
        for piece in [(first, second)[i % 2]]
    ]
    for piece in (first, second):
        engine.share(piece)
    for i, given in enumerate(generate(engine, requests, n=2, sampling=SAMPLING, stop=STOP)):
        for branch, reply in enumerate(given):
            tokens, log_probs = dense_reply(params, requests[i], branch, SAMPLING)
            assert reply.tokens == tokens
            np.testing.assert_allclose(reply.log_probs, log_probs, atol=1e-4)
    assert engine.usage.read == 11 + 21 + sum(sum(map(len, r.pieces)) - 1 for r in REQUESTS)
    leaves = [engine.cache.find(r.pieces[:-1]) for r in requests]
    context = engine.context([(leaf, leaf.end) for leaf in leaves], 4, range(4))
    shared = 11 if instruction_tokens == 16 else 11 + 21
    assert context.instructions.fills.sum() == shared  # once, for two conversations each
    assert context.own.fills.sum() == sum(leaf.end for leaf in leaves) - 2 * shared


def test_scores_equal_the_dense_readout(params):
    head = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))

    def readout(head, hidden):
        return hidden @ head

    engine = Engine(params, CONFIG, SIZES, readout=readout, head=head)
    conversations = [r.pieces for r in REQUESTS] + [REQUESTS[2].pieces[:3]]
    scores = engine.score(conversations)
    for pieces, score in zip(conversations, scores, strict=True):
        assert score == pytest.approx(float(dense_last(params, pieces) @ head), abs=1e-4)
    read = engine.usage.read
    assert engine.score(conversations) == scores
    assert engine.usage.read == read  # told from memory


@pytest.mark.parametrize("siblings", [1, 2])
@pytest.mark.parametrize("batch", [16, 40, 64], ids=["least", "packed", "not packed"])
def test_pieces_are_packed_into_calls_and_read_as_in_the_dense_pass(params, batch, siblings):
    """Pieces of all lengths up to a row's: as many of them in a call as there is room for."""
    sizes = dataclasses.replace(SIZES, extend_batch=batch, siblings=siblings)
    head = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))
    engine = Engine(params, CONFIG, sizes, readout=lambda head, h: h @ head, head=head)
    shared = request(40, 9).pieces
    conversations = [[*shared, *request(i, length).pieces] for i, length in enumerate(range(1, 17))]
    calls: list[list[int]] = []
    extend = engine._extend

    def counted(groups):
        calls.append([len(engine.cache.next_portion(entry)) for group in groups for entry in group])
        extend(groups)

    engine._extend = counted
    scores = engine.score(conversations)
    for pieces, score in zip(conversations, scores, strict=True):
        assert score == pytest.approx(float(dense_last(params, pieces) @ head), abs=1e-4)
    room = max(batch, siblings * sizes.extend_tokens)
    assert all(sum(lengths) <= room and len(lengths) <= sizes.extend_rows for lengths in calls)
    assert sum(map(sum, calls)) == engine.usage.read
    left = calls[1:]
    for lengths, after in itertools.pairwise(left):  # no call leaves room for what comes next
        more = len(lengths) + siblings > sizes.extend_rows
        assert more or sum(lengths) + sum(after[:siblings]) > room


def test_how_pieces_are_packed_is_checked():
    for name in ("extend_batch", "extend_tokens"):
        with pytest.raises(UserError, match=rf"^{name} must be a multiple of page_size, 4"):
            dataclasses.replace(SIZES, **{name: 6})


def test_context_that_is_too_short_is_one_clear_error(params):
    engine = Engine(params, CONFIG, SIZES)
    with pytest.raises(UserError, match=r"^engine\.context must be at least .* a conversation of 250 tokens"):
        generate(engine, [request(0, 250)], n=1, sampling=SAMPLING, stop=STOP)
    with pytest.raises(UserError, match=r"must be at most 512, the longest input"):
        Engine(params, CONFIG, dataclasses.replace(SIZES, context=1024))


def test_requests_of_lower_rank_go_first(params):
    engine = Engine(params, CONFIG, dataclasses.replace(SIZES, decode_rows=2))
    decoder = Decoder(engine, SAMPLING, Stopping(tokens=(STOP,)), (2, 1))
    ranks = {
        decoder.submit(request(i, 5), 1 + i % 2, rank): rank for i, rank in enumerate((2, 0, 1, 0))
    }
    assert decoder.room() == 0
    done: list[float] = []
    while len(done) < 4:
        decoder.start()
        done += sorted(ranks[ticket] for ticket, _ in decoder.collect())
    assert done == sorted(done)
    assert decoder.room() == 2
