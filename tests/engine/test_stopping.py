"""What ends a reply: by token where it is decoded, by text where it is taken."""

from __future__ import annotations

import dataclasses

import pytest
from engine_cases import STOP, request, weights

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping, stopping_at
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES

WORDS = ["<end>", "go", " ", "to", "Obs", "ervation", ":", " Obs", "x\nObservation: y", "É"]


def text(tokens) -> str:
    return "".join(WORDS[t] for t in tokens)


STOPPING = stopping_at(["Observation:"], [0], len(WORDS), text)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        ([1, 2, 3], None),
        ([1, 2, 3, 0], 3),
        ([0], 0),
        ([1, 4, 5, 6], 1),
        ([1, 7, 5, 6], 1),  # the space before the string goes with its token
        ([1, 7, 5], None),
        ([9, 8], 1),
        ([1, 4, 5, 6, 0], 1),  # the string first
        ([4, 5, 6], 0),
    ],
)
def test_tokens_before_the_string_are_kept(tokens, length):
    assert STOPPING.reply_length(tokens) == length


def test_only_tokens_that_hold_a_whole_string_stop_the_device():
    assert STOPPING.halting == (8,)
    assert [t for t, end in enumerate(STOPPING.ends(len(WORDS))) if end] == [0, 8]


def test_without_strings_only_the_token_stops():
    assert stopping_at([], [0], len(WORDS), text) == Stopping(tokens=(0,))


def test_an_empty_string_is_refused():
    with pytest.raises(UserError, match=r"stop_strings: an empty string"):
        stopping_at(["a", ""], [0], len(WORDS), text)


def _replies(stopping: Stopping):
    scheduler = Scheduler(Engine(weights(0), CONFIG, SIZES), SAMPLING, stopping, [2])
    tickets = [scheduler.submit(request(seed, 9, 4 + seed), 2) for seed in range(6)]
    found = {}
    while len(found) < len(tickets):
        found.update(scheduler.collect())
    return [reply for ticket in tickets for reply in found[ticket]], scheduler.engine.usage.decoded


def test_replies_are_cut_at_strings_of_several_tokens_and_of_one():
    """Against the same replies cut afterwards."""

    def spell(tokens) -> str:
        return "".join(chr(0x4E00 + t) for t in tokens)

    whole, decoded_whole = _replies(Stopping(tokens=(STOP,)))
    longest = max(whole, key=lambda reply: len(reply.tokens)).tokens
    other = next(r.tokens for r in whole if len(r.tokens) > 5 and r.tokens[:4] != longest[:4])
    strings = [spell(longest[3:5]), spell(other[2:3])]
    cut, decoded = _replies(stopping_at(strings, [STOP], CONFIG.vocab_size, spell))
    assert decoded < decoded_whole
    several = 0
    for before, after in zip(whole, cut, strict=True):
        ends = [at for s in strings if (at := spell(before.tokens).find(s)) >= 0]
        if not ends:
            assert after == before
            continue
        several += 1
        # One log-probability more: the token that would have followed.
        assert after == dataclasses.replace(
            before,
            tokens=before.tokens[: min(ends)],
            log_probs=before.log_probs[: min(ends) + 1],
            stopped=True,
        )
    assert several >= 2


def test_every_stop_token_ends_a_reply_and_changes_nothing_before_it():
    """Against the same replies ended by the first of them alone, cut afterwards."""
    whole, _ = _replies(Stopping(tokens=(STOP,)))
    others = {reply.tokens[len(reply.tokens) // 2] for reply in whole[:2]} - {STOP}
    ended, _ = _replies(stopping_at([], [STOP, *others], CONFIG.vocab_size, str))
    changed = 0
    for before, after in zip(whole, ended, strict=True):
        at = next((i for i, token in enumerate(before.tokens) if token in others), None)
        if at is None:
            assert after == before
            continue
        changed += 1
        assert after == dataclasses.replace(
            before, tokens=before.tokens[:at], log_probs=before.log_probs[: at + 1], stopped=True
        )
    assert changed >= 2
