"""The end of a reply: stop tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
from engine_cases import STOP, request, weights

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES


def test_a_reply_ends_at_the_first_stop_token():
    stopping = Stopping(tokens=(0, 8))
    assert stopping.reply_length([1, 2, 3]) is None
    assert stopping.reply_length([1, 2, 3, 0]) == 3
    assert stopping.reply_length([1, 8]) == 1
    assert stopping.reply_length([0]) == 0
    assert stopping.reply_length([]) is None
    assert np.flatnonzero(stopping.ends(10)).tolist() == [0, 8]
    assert np.flatnonzero(stopping.ends(5)).tolist() == [0]


def _replies(stopping: Stopping):
    scheduler = Scheduler(Engine(weights(0), CONFIG, SIZES), SAMPLING, stopping, [2])
    tickets = [scheduler.submit(request(seed, 9, 4 + seed), 2) for seed in range(6)]
    found = {}
    while len(found) < len(tickets):
        found.update(scheduler.collect())
    return [reply for ticket in tickets for reply in found[ticket]]


def test_every_stop_token_ends_a_reply_and_changes_nothing_before_it():
    """Against the same replies ended by the first of them alone, cut afterwards."""
    whole = _replies(Stopping(tokens=(STOP,)))
    others = {reply.tokens[len(reply.tokens) // 2] for reply in whole[:2]} - {STOP}
    ended = _replies(Stopping(tokens=(STOP, *others)))
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
