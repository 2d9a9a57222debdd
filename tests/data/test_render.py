"""Both ends of every step, against each state rendered by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conversation_cases import PROMPT, trajectories, trajectory, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.chat import opening_tokens, render
from agentrm_jax.data.render import Renderer


def check(whole: Trajectory, limit: int) -> int:
    """Compares all ends; gives how many steps are longer than what is left for them."""
    renderer = Renderer(word_tokenizer(), lambda task: PROMPT, limit)
    ends, dropped = renderer.both_ends(whole)
    assert len(ends) == 1 + len(whole.steps)
    too_long = 0
    for n, (action, state) in enumerate(ends):
        own = dataclasses.replace(whole, steps=whole.steps[:n])
        rendered, dropped_here = render(word_tokenizer(), PROMPT, own, limit)
        np.testing.assert_array_equal(np.concatenate(state), rendered.tokens)
        if dropped_here == n:  # nothing is kept: no step, or one that is too long
            assert action is None
            too_long += n > 0
        else:
            np.testing.assert_array_equal(
                np.concatenate(action), rendered.tokens[: rendered.action_ends[-1] + 1]
            )
    assert dropped == dropped_here
    return too_long


@settings(deadline=None)
@given(trajectories(), st.integers(0, 120))
def test_ends_are_those_of_each_state_by_itself(whole: Trajectory, room: int) -> None:
    opening = opening_tokens(word_tokenizer(), PROMPT, whole.first_observation)
    check(whole, len(opening) + room)


@pytest.mark.parametrize(("room", "too_long"), [(1000, 0), (90, 0), (25, 2)])
def test_ends_where_steps_are_left_out(room: int, too_long: int) -> None:
    whole = trajectory(9)
    opening = opening_tokens(word_tokenizer(), PROMPT, whole.first_observation)
    assert check(whole, len(opening) + room) == too_long


def test_an_ends_pieces_begin_with_those_before() -> None:
    ends, dropped = Renderer(word_tokenizer(), lambda task: PROMPT, 1000).both_ends(trajectory(4))
    assert dropped == 0
    flat = [pieces for end in ends for pieces in end if pieces is not None]
    assert [len(pieces) for pieces in flat] == list(range(2, 2 + len(flat)))
    for pieces in flat:
        for a, b in zip(pieces, flat[-1], strict=False):
            np.testing.assert_array_equal(a, b)
