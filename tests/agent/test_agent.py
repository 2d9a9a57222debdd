"""The agent: what it asks the engine, and what it makes of the replies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agentrm_jax.agent.agent import Agent, random_key
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Question, propose
from agentrm_jax.core.reply import parse_action
from agentrm_jax.data.chat import render
from agentrm_jax.engine.engine import Engine
from agentrm_jax.pipeline.policies import ModelPolicy
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

LIMIT = SIZES.context - SAMPLING.max_tokens


@pytest.fixture(scope="module")
def agent() -> Agent:
    return tiny_policy()


REQUESTS = [
    (tiny_state(0, 0), "sample/0/0"),
    (tiny_state(1, 2), "expand/3"),
    (tiny_state(0, 1), "sample/0/1"),
    (tiny_state(2, 4), "beam/4/0"),
    (tiny_state(2, 4), "beam/4/1"),
    (tiny_state(3, 30), "expand/1"),  # fills the context: wider tables for all asked with it
]


def test_a_request_gets_the_same_proposals_whatever_is_asked_with_it(agent):
    together = propose(agent, REQUESTS, 2)
    assert propose(agent, REQUESTS[::-1], 2) == together[::-1]
    fresh = tiny_policy()
    for request, expected in zip(REQUESTS, together, strict=True):
        assert propose(fresh, [request], 2) == [expected]
    assert together[3] != together[4]  # another purpose, other turns
    assert propose(agent, [], 2) == []


def test_a_plain_loop_collects_everything(agent):
    """`collect` starts what it waits for: nothing but the documented contract is used.

    More turns than rows, two numbers of turns; requests that come later join in.
    """
    expected = {n: propose(agent, REQUESTS, n) for n in (1, 3)}
    policy = Agent(agent.engine, tokenizer(), lambda task: PROMPT, SAMPLING, 0, (1, 3))
    assert policy.collect() == []
    waiting = [(Question(state, purpose, n), expected[n][r])
               for n in (3, 1) for r, (state, purpose) in enumerate(REQUESTS)]  # fmt: skip
    open_tickets = {}
    while waiting or open_tickets:
        if waiting:
            batch, waiting = waiting[:5], waiting[5:]
            tickets = policy.submit([question for question, _ in batch])
            open_tickets.update(zip(tickets, batch, strict=True))
        answers = policy.collect()
        assert answers
        for ticket, proposals in answers:
            _, wanted = open_tickets.pop(ticket)
            assert [p.token_ids for p in proposals] == [p.token_ids for p in wanted]
    assert policy.collect() == []


def test_proposals_are_what_was_sampled(agent):
    proposals = [proposal for group in propose(agent, REQUESTS, 2) for proposal in group]
    assert {proposal.stopped for proposal in proposals} == {False, True}
    for proposal in proposals:
        assert proposal.reply == tokenizer().decode(proposal.token_ids)
        assert proposal.action == parse_action(proposal.reply)
        assert tokenizer().control.isdisjoint(proposal.token_ids)
        assert len(proposal.log_probs) == len(proposal.token_ids) + proposal.stopped
        assert proposal.stopped or len(proposal.token_ids) == SAMPLING.max_tokens


def test_every_control_token_ends_a_reply(agent):
    assert agent.stopping.tokens == tokenizer().stops
    assert agent.stopping.tokens[0] == tokenizer().chat.stop_token
    assert {*agent.stopping.tokens} == tokenizer().control
    assert len(agent.stopping.tokens) == 5


def test_the_greedy_agent_does_not_depend_on_the_key(agent):
    greedy = tiny_policy(agent.engine, dataclasses.replace(SAMPLING, temperature=0.0))
    other = tiny_policy(agent.engine, dataclasses.replace(SAMPLING, temperature=0.0), seed=9)
    [[a, b]] = propose(greedy, REQUESTS[1:2], 2)
    assert a == b
    assert propose(other, REQUESTS[1:2], 2) == [[a, b]]


def test_keys_come_from_seed_task_and_purpose(agent):
    key = agent.request(*REQUESTS[0])[0].key
    np.testing.assert_array_equal(key, random_key(0, "toy/0", "sample/0/0"))
    for other in (
        tiny_policy(agent.engine, seed=1).request(*REQUESTS[0]),
        agent.request(tiny_state(1, 0), "sample/0/0"),
        agent.request(tiny_state(0, 0), "sample/1/0"),
    ):
        assert (other[0].key != key).any()
    # The state itself is no part of it: it is told apart by the purpose.
    np.testing.assert_array_equal(agent.request(tiny_state(0, 3), "sample/0/0")[0].key, key)


def test_keys_stay_what_they_are():
    """Runs of other machines and versions draw the same."""
    key = random_key(0, "toy/0", "sample/0/0")
    np.testing.assert_array_equal(key, np.array([1789520443, 2455233466], np.uint32))


def test_long_states_lose_whole_steps_and_say_how_many(agent):
    long = tiny_state(3, 30)
    request, dropped = agent.request(long, "expand/1")
    rendered, expected = render(tokenizer(), PROMPT, long, LIMIT)
    assert dropped == expected > 0
    np.testing.assert_array_equal(np.concatenate(request.segments), rendered.tokens)
    whole, _ = render(tokenizer(), PROMPT, long)
    assert len(rendered.tokens) <= LIMIT < len(whole.tokens)
    # The agent answers as if the steps that are left were all there were.
    rest = dataclasses.replace(long, steps=long.steps[dropped:])
    [[proposal], [other]] = propose(agent, [(long, "expand/1"), (rest, "expand/1")], 1)
    assert proposal.truncated_steps == dropped
    assert proposal.token_ids == other.token_ids  # read in other pieces: the last bits may differ
    np.testing.assert_allclose(proposal.log_probs, other.log_probs, atol=1e-5)


def test_a_context_without_room_is_one_clear_error():
    engine = Engine(weights(0), CONFIG, SIZES)
    with pytest.raises(UserError, match=r"^engine\.context must be above the .* 256 \(got 256\)"):
        tiny_policy(engine, dataclasses.replace(SAMPLING, max_tokens=256))
    tight = tiny_policy(engine, dataclasses.replace(SAMPLING, max_tokens=250))
    with pytest.raises(UserError, match=r"engine\.context must leave .* toy/0 .* \(it leaves 6\)"):
        propose(tight, [(tiny_state(0, 0), "")], 1)


def test_a_policy_with_a_seed_keeps_it(agent):
    """`evaluate` gives its seed; the search that a method runs has another default."""
    policy = ModelPolicy(agent.engine, tokenizer(), lambda task: PROMPT, SAMPLING, 0)
    policy._prompts = lambda task: PROMPT
    seeded = Agent(agent.engine, tokenizer(), lambda task: PROMPT, SAMPLING, 5)
    expected = propose(seeded, REQUESTS[:1], 2)
    assert propose(policy.with_seed(5).with_seed(0), REQUESTS[:1], 2) == expected
    assert propose(policy.with_seed(0), REQUESTS[:1], 2) != expected
