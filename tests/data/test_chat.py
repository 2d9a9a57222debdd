"""Rendering: append-only, turns that cannot be forged, truncation by whole steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conversation_cases import PROMPT, step, task, trajectories, trajectory, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.chat import first_steps, render
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import ASSISTANT, BEGIN, END, USER

quick = settings(deadline=None, max_examples=60)
prompts = st.sampled_from([None, PROMPT])


def prefix(whole: Trajectory, num_steps: int) -> Trajectory:
    return dataclasses.replace(whole, steps=whole.steps[:num_steps])


def test_the_text_of_a_conversation():
    tokenizer = word_tokenizer()
    whole = Trajectory(task=task(), first_observation="Goal.", steps=(step("Action: a", "Ok."),))
    rendered, dropped = render(tokenizer, PROMPT, whole)
    assert dropped == 0
    assert tokenizer.decode(rendered.tokens.tolist()) == (
        f"{BEGIN}{USER}Move about.{ASSISTANT}OK.{END}"
        f"{USER}You see a key.{ASSISTANT}Action: take key{END}{USER}Done."
        f"{USER}Goal.{ASSISTANT}Action: a{END}{USER}Ok.{ASSISTANT}"
    )


@quick
@given(trajectories(), prompts)
def test_every_state_is_a_prefix_and_its_end_is_known(whole, prompt):
    tokenizer = word_tokenizer()
    rendered, _ = render(tokenizer, prompt, whole)
    assert len(rendered.state_ends) == len(whole.steps) + 1
    for i, end in enumerate(rendered.state_ends):
        state, _ = render(tokenizer, prompt, prefix(whole, i))
        np.testing.assert_array_equal(state.tokens, rendered.tokens[: end + 1])


@quick
@given(trajectories(), prompts)
def test_spans_hold_the_replies_and_their_stop_tokens(whole, prompt):
    tokenizer = word_tokenizer()
    rendered, _ = render(tokenizer, prompt, whole)
    for one, (begin, end), action_end in zip(
        whole.steps, rendered.reply_spans, rendered.action_ends, strict=True
    ):
        tokens = tuple(rendered.tokens[begin:end].tolist())
        assert tokenizer.decode(tokens[:-1]) == one.reply
        if one.token_ids and tokenizer.decode(one.token_ids) == one.reply:  # these are our tokens
            assert tokens[:-1] == one.token_ids
        assert tokens[-1] == tokenizer.chat.stop_token
        assert action_end == end - 1


@quick
@given(trajectories(), prompts)
def test_no_text_forges_a_turn(whole, prompt):
    """Counting the tokens around turns: they come from the rendering alone."""
    tokenizer = word_tokenizer()
    tokens = render(tokenizer, prompt, whole)[0].tokens.tolist()
    told = 0 if prompt is None else 2  # replies in the prompt
    assert tokens.count(tokenizer.chat.stop_token) == told + len(whole.steps)
    assert tokens.count(tokenizer.chat.begin[0]) == 1
    users = 1 + len(whole.steps) + (0 if prompt is None else 3)
    assert tokens.count(tokenizer.chat.user_open[0]) == users


@quick
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_states_keep_what_fits_and_let_go_seldom(lengths, room):
    firsts = first_steps(lengths, room)
    assert len(firsts) == len(lengths) + 1
    for n, first in enumerate(firsts):
        assert sum(lengths[first:n]) <= room
        assert firsts[: n + 1] == first_steps(lengths[:n], room)  # a state decides by itself
    for n in range(1, len(firsts)):
        if sum(lengths[firsts[n - 1] : n]) <= room:
            assert firsts[n] == firsts[n - 1]  # nothing goes without need
        else:
            assert sum(lengths[firsts[n] : n]) <= room // 2 or firsts[n] == n - 1
            assert firsts[n] < n or lengths[n - 1] > room  # the newest goes only if it must


def test_a_long_conversation_loses_whole_steps_from_the_front():
    tokenizer, whole = word_tokenizer(), trajectory(8)
    rendered, _ = render(tokenizer, PROMPT, whole)
    opening = rendered.state_ends[0] + 1
    limit = len(rendered.tokens) - 1  # one token too few
    cut, dropped = render(tokenizer, PROMPT, whole, limit)
    assert 3 <= dropped <= 5  # half of the room is free again
    assert len(cut.tokens) - opening <= (limit - opening) // 2
    np.testing.assert_array_equal(cut.tokens[:opening], rendered.tokens[:opening])
    np.testing.assert_array_equal(
        cut.tokens[opening:], rendered.tokens[rendered.state_ends[dropped] + 1 :]
    )
    assert [tokenizer.decode(cut.tokens[a : b - 1].tolist()) for a, b in cut.reply_spans] == [
        one.reply for one in whole.steps[dropped:]
    ]
    assert render(tokenizer, PROMPT, whole, limit + 1)[1] == 0


@quick
@given(trajectories(), prompts, st.integers(60, 200))
def test_segments_equal_the_rendering(whole, prompt, limit):
    tokenizer = word_tokenizer()
    renderer = Renderer(tokenizer, lambda task: prompt, limit)
    fits = len(render(tokenizer, prompt, prefix(whole, 0), limit)[0].tokens) <= limit
    states = [prefix(whole, n) for n in range(1, len(whole.steps) + 1)]
    if not fits or any(
        render(tokenizer, prompt, state, limit)[1] == len(state.steps) for state in states
    ):
        with pytest.raises(
            UserError, match=r"engine\.context must leave .* (the prompt|a step) of task toy/0"
        ):
            renderer.state(whole)
        return
    state = renderer.state(whole)
    rendered, left_out = render(tokenizer, prompt, whole, limit)
    assert state.truncated_steps == left_out + rendered.shortened
    assert state.shared_prefix == (prompt is not None)
    assert len(state.segments) == len(whole.steps) - left_out + len(renderer.opening(whole))
    np.testing.assert_array_equal(np.concatenate(state.segments), rendered.tokens)


def test_each_task_gets_its_own_prompt():
    """Kinds of one environment may have different ones."""
    other = dataclasses.replace(PROMPT, instruction="other words")
    one = trajectory(1)
    two = dataclasses.replace(one, task=dataclasses.replace(one.task, kind="second"))
    renderer = Renderer(
        word_tokenizer(), lambda task: other if task.kind == "second" else PROMPT, 1000
    )
    for _ in range(2):
        for whole, prompt in ((one, PROMPT), (two, other)):
            rendered, _ = render(renderer.tokenizer, prompt, whole)
            np.testing.assert_array_equal(
                np.concatenate(renderer.state(whole).segments), rendered.tokens
            )


def test_a_prompt_that_does_not_fit_names_the_task():
    renderer = Renderer(word_tokenizer(), lambda task: PROMPT, 10)
    with pytest.raises(UserError, match=r"tokens for the prompt of task toy/0 .*leaves 10"):
        renderer.opening(trajectory(0))
