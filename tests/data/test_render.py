"""Both ends of every step, against each state rendered by itself."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from conversation_cases import PROMPT, step, trajectories, trajectory, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data import render as rendering
from agentrm_jax.data.chat import Rendered, instruction_tokens, opening_tokens, render
from agentrm_jax.data.render import Renderer


def rendered_prefixes(whole: Trajectory, limit: int) -> list[tuple[Rendered, int]]:
    """Each state rendered by itself, and how many of its oldest steps were left out."""
    states = [
        dataclasses.replace(whole, steps=whole.steps[:n]) for n in range(len(whole.steps) + 1)
    ]
    return [render(word_tokenizer(), PROMPT, state, limit) for state in states]


def check(whole: Trajectory, limit: int) -> int:
    """Compares all ends; returns how many steps are shortened."""
    renderer = Renderer(word_tokenizer(), lambda task: PROMPT, limit)
    expected = rendered_prefixes(whole, limit)
    if any(dropped == n for n, (_, dropped) in enumerate(expected) if n):
        with pytest.raises(UserError, match="tokens for a step of task toy/0"):
            renderer.both_ends(whole)  # not even the frame of some step fits
        return 0
    ends, truncated = renderer.both_ends(whole)
    assert len(ends) == len(expected)
    for n, ((action, state), (rendered, dropped)) in enumerate(zip(ends, expected, strict=True)):
        np.testing.assert_array_equal(np.concatenate(state), rendered.tokens)
        assert len(rendered.tokens) <= limit
        if n == 0:
            assert action is None
            continue
        assert dropped < n  # the newest step is kept
        assert action is not None
        np.testing.assert_array_equal(
            np.concatenate(action), rendered.tokens[: rendered.action_ends[-1] + 1]
        )
    rendered, dropped = expected[-1]
    assert truncated == dropped + rendered.shortened
    return rendered.shortened


@settings(deadline=None, max_examples=40)
@given(trajectories(), st.integers(0, 120))
def test_ends_are_those_of_each_state_by_itself(whole: Trajectory, room: int) -> None:
    opening = opening_tokens(word_tokenizer(), PROMPT, whole.first_observation)
    check(whole, len(opening) + room)


@pytest.mark.parametrize("room", [1000, 90, 60])
def test_ends_where_steps_are_left_out(room: int) -> None:
    whole = trajectory(9)
    opening = opening_tokens(word_tokenizer(), PROMPT, whole.first_observation)
    assert check(whole, len(opening) + room) == 0


LONG = "You see a door and a key. " * 200


@pytest.mark.parametrize("room", [60, 100, 300])
def test_a_long_observation_loses_its_middle_and_the_action_stays(room: int) -> None:
    """At the last step, and at the one before it."""
    tokenizer, whole = word_tokenizer(), trajectory(3)
    opening = opening_tokens(tokenizer, PROMPT, whole.first_observation)
    steps = (*whole.steps[:2], step("Action: look", LONG + "The end."))
    whole = dataclasses.replace(whole, steps=steps)
    renderer = Renderer(tokenizer, lambda task: PROMPT, len(opening) + room)
    state = renderer.state(whole)
    text = tokenizer.decode(np.concatenate(state.segments).tolist())
    assert text.startswith(tokenizer.decode(opening) + "Action: ")
    assert "Action: look<|end|><|user|>You see" in text
    assert text.endswith("The end.<|assistant|>")
    [left_out] = re.findall(r" \.\.\. \[(\d+) tokens left out\] \.\.\. ", text)
    whole_length = len(tokenizer.encode(LONG + "The end."))
    kept = len(
        tokenizer.encode(re.sub(r".*<\|user\|>|<\|assistant\|>$", "", text, flags=re.DOTALL))
    )
    mark = len(tokenizer.encode(f" ... [{left_out} tokens left out] ... "))
    assert abs(int(left_out) - (whole_length - kept + mark)) <= 2  # tokens at the cuts
    assert room - 4 <= sum(map(len, state.segments)) - len(opening) <= room
    assert renderer.decoded_state(whole).truncated_steps == state.truncated_steps
    rendered, left_out_steps = render(tokenizer, PROMPT, whole, len(opening) + room)
    np.testing.assert_array_equal(np.concatenate(state.segments), rendered.tokens)
    assert (left_out_steps + 1, rendered.shortened) == (state.truncated_steps, 1)
    ended = dataclasses.replace(whole, steps=(*steps, step("Action: end", "Ok.")))
    after = tokenizer.decode(np.concatenate(renderer.state(ended).segments).tolist())
    assert after.endswith("Action: end<|end|><|user|>Ok.<|assistant|>")


def test_a_long_first_observation_loses_its_middle_and_leaves_room_for_steps() -> None:
    tokenizer, whole = word_tokenizer(), trajectory(2)
    whole = dataclasses.replace(whole, first_observation=f"Your goal: {LONG}The end.")
    instruction = instruction_tokens(tokenizer, PROMPT)
    limit = len(instruction) + 400
    renderer = Renderer(tokenizer, lambda task: PROMPT, limit)
    state = renderer.state(whole)
    text = tokenizer.decode(np.concatenate(state.segments[1:]).tolist())
    assert re.match(r"<\|user\|>Your goal: .* \.\.\. \[\d+ tokens left out\] \.\.\. ", text)
    assert "The end.<|assistant|>" in text
    assert text.count(whole.steps[-1].action) == 1
    opening = sum(map(len, renderer.opening(whole)))
    assert limit - limit // 8 - 4 <= opening <= limit - limit // 8
    assert state.truncated_steps <= len(whole.steps)
    assert renderer.decoded_state(whole).truncated_steps == state.truncated_steps
    rendered, left_out_steps = render(tokenizer, PROMPT, whole, limit)
    np.testing.assert_array_equal(np.concatenate(state.segments), rendered.tokens)
    assert (left_out_steps + 1, rendered.shortened) == (state.truncated_steps, 1)


def test_a_long_reply_keeps_its_action_and_teaches_nothing() -> None:
    tokenizer = word_tokenizer()
    reply = "Thought: " + "go on " * 300 + "\nAction: open door"
    whole = dataclasses.replace(trajectory(0), steps=(step(reply, "It is open."),))
    opening = opening_tokens(tokenizer, PROMPT, whole.first_observation)
    rendered, dropped = render(tokenizer, PROMPT, whole, len(opening) + 100)
    text = tokenizer.decode(rendered.tokens.tolist())
    assert text.endswith("Action: open door<|end|><|user|>It is open.<|assistant|>")
    assert len(rendered.tokens) - len(opening) <= 100
    assert (dropped, rendered.shortened) == (0, 1)
    [(begin, end)] = rendered.reply_spans
    assert begin == end == rendered.action_ends[0] + 1


def test_a_step_whose_frame_does_not_fit_names_the_task() -> None:
    renderer = Renderer(word_tokenizer(), lambda task: None, 12)
    with pytest.raises(
        UserError, match=r"^engine\.context must leave at least .* a step of task toy/0"
    ):
        renderer.state(trajectory(1))


def test_the_segments_of_an_end_begin_with_those_before() -> None:
    ends, dropped = Renderer(word_tokenizer(), lambda task: PROMPT, 1000).both_ends(trajectory(4))
    assert dropped == 0
    flat = [segments for end in ends for segments in end if segments is not None]
    assert [len(segments) for segments in flat] == list(range(2, 2 + len(flat)))
    for segments in flat:
        for a, b in zip(segments, flat[-1], strict=False):
            np.testing.assert_array_equal(a, b)


def test_openings_that_are_dropped_are_rendered_again(monkeypatch) -> None:
    """Questions about attempts have an opening each, and there may be many."""
    states = [dataclasses.replace(trajectory(0), first_observation=f"task {i}") for i in range(5)]
    whole = Renderer(word_tokenizer(), lambda task: PROMPT, 100)
    expected = [np.concatenate(whole.opening(state)) for state in states]
    monkeypatch.setattr(rendering, "_MOST_OPENINGS", 2)
    renderer = Renderer(word_tokenizer(), lambda task: PROMPT, 100)
    for state, tokens in [*zip(states, expected, strict=True)] * 2:
        np.testing.assert_array_equal(np.concatenate(renderer.opening(state)), tokens)
    assert len(renderer._openings) == 2
