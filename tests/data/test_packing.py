"""Packing: nothing is lost, and every loss stands where it belongs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from conversation_cases import PROMPT, trajectories, trajectory, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.chat import render, reply_tokens
from agentrm_jax.data.packing import only_labelled, pack
from agentrm_jax.data.sequences import TokenSequence, sft_sequences, value_sequences
from agentrm_jax.data.states import LabelledTree

quick = settings(deadline=None, max_examples=50)


def sequence(number: int, length: int) -> TokenSequence:
    generator = np.random.default_rng(number)
    return TokenSequence(
        tokens=generator.integers(1, 999, length).astype(np.int32),
        weights=generator.random(length).astype(np.float32),
        targets=generator.random(length).astype(np.float32),
    )


def as_tuples(item) -> tuple:
    return tuple(map(tuple, (item.tokens, item.weights, item.targets)))


@quick
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_every_sequence_is_in_the_rows_once(lengths):
    sequences = [sequence(i, length) for i, length in enumerate(lengths)]
    rows = pack(sequences, 20)
    found = []
    for r in range(len(rows)):
        for segment in range(1, rows.segments[r].max() + 1):
            at = np.flatnonzero(rows.segments[r] == segment)
            assert (np.diff(at) == 1).all()
            np.testing.assert_array_equal(rows.positions[r, at], np.arange(len(at)))
            found.append(
                TokenSequence(
                    tokens=rows.tokens[r, at],
                    weights=rows.weights[r, at],
                    targets=rows.targets[r, at],
                )
            )
        padding = rows.segments[r] == 0
        assert not rows.weights[r, padding].any()
        assert not rows.tokens[r, padding].any()
    assert sorted(map(as_tuples, found)) == sorted(map(as_tuples, sequences))
    # No two rows could be one, so at least half of all places are used where rows are many.
    used = np.sort((rows.segments > 0).sum(axis=1))
    assert len(used) == 1 or used[0] + used[1] > 20


@quick
@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.floats(0, 1))
def test_no_label_is_lost_or_there_twice(lengths, share):
    rng = np.random.default_rng(0)
    rows = pack([sequence(i, length) for i, length in enumerate(lengths)], 20)
    rows = dataclasses.replace(
        rows, weights=rows.weights * (rng.random(rows.weights.shape) < share)
    )
    few = only_labelled(rows)
    assert few.only is not None
    assert few.only.shape == few.weights.shape == few.targets.shape
    again = np.zeros_like(rows.weights)
    np.add.at(again, (np.arange(len(rows))[:, None], few.only), few.weights)
    np.testing.assert_array_equal(again, rows.weights)
    wanted = np.take_along_axis(rows.targets, few.only, axis=1)
    np.testing.assert_array_equal(few.targets, wanted)
    assert few.only.shape[1] == max(1, (rows.weights != 0).sum(axis=1).max())


def test_packing_is_tight_and_repeats():
    generator = np.random.default_rng(0)
    sequences = [sequence(i, int(generator.integers(20, 200))) for i in range(500)]
    rows, again = pack(sequences, 512), pack(sequences, 512)
    for name, value in rows.take(np.arange(len(rows))).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert (rows.segments > 0).mean() > 0.97


def test_what_cannot_be_packed_is_said():
    with pytest.raises(UserError, match=r"fit\.length: a sequence has 21 tokens, rows have 20"):
        pack([sequence(0, 3), sequence(1, 21)], 20)
    with pytest.raises(UserError, match="nothing to train on"):
        pack([], 20)


@quick
@given(st.lists(trajectories(), max_size=4))
def test_sft_learns_exactly_the_replies(wholes):
    tokenizer = word_tokenizer()
    sequences, left_out = sft_sequences(tokenizer, lambda task: PROMPT, wholes, 4096)
    assert left_out == 0
    wholes = [whole for whole in wholes if whole.steps]
    assert len(sequences) == len(wholes)
    for whole, one in zip(wholes, sequences, strict=True):
        learned = [
            token
            for step in whole.steps
            for token in reply_tokens(tokenizer, step.reply, step.token_ids)
        ]
        assert one.tokens[one.weights == 1].tolist() == learned
        assert ((one.weights == 0) | (one.weights == 1)).all()


def test_sft_can_leave_out_what_was_refused():
    whole = trajectory(4)
    steps = list(whole.steps)
    for number in (1, 2):
        transition = dataclasses.replace(steps[number].transition, valid=False)
        steps[number] = dataclasses.replace(steps[number], transition=transition)
    whole = dataclasses.replace(whole, steps=tuple(steps))
    arguments = (word_tokenizer(), lambda task: PROMPT, [whole], 4096)
    ([every], _), ([some], _) = sft_sequences(*arguments), sft_sequences(*arguments, refused=False)
    assert (some.tokens == every.tokens).all()
    learned = [t for n in (0, 3) for t in reply_tokens(arguments[0], steps[n].reply)]
    assert some.tokens[some.weights == 1].tolist() == learned
    assert every.weights.sum() > some.weights.sum()


def labelled(num_steps: int, number: int = 0) -> LabelledTree:
    """A tree of one path."""
    path, nodes = trajectory(num_steps, number), range(num_steps + 1)
    return LabelledTree(
        task=path.task,
        first_observation=path.first_observation,
        parents=tuple(range(-1, num_steps)),
        steps=path.steps,
        values=tuple((i + 1) / 64 for i in nodes),
        visit_counts=tuple(nodes),
        weights=tuple((0.0, 0.5, 0.75)[(i + number) % 3] for i in nodes),
    )


def last_state(tree: LabelledTree) -> Trajectory:
    return tree.state(len(tree.steps))


@pytest.mark.parametrize("number", range(3))
def test_values_stand_at_both_ends_of_each_labelled_step(number):
    """The oracle renders each state by itself, as the reward model reads it at test time."""
    tokenizer, tree = word_tokenizer(), labelled(5, number)
    (one,), left_out = value_sequences(tokenizer, lambda task: PROMPT, [tree], 4096)
    expected = {}
    for i, (value, weight) in enumerate(zip(tree.values, tree.weights, strict=True)):
        if not weight:
            continue
        state = dataclasses.replace(last_state(tree), steps=tree.steps[:i])
        ends = [render(tokenizer, PROMPT, state)[0].tokens]
        if i:
            before = dataclasses.replace(state, steps=state.steps[:-1])
            last = state.steps[-1]
            reply = reply_tokens(tokenizer, last.reply, last.token_ids)
            ends.append(np.concatenate([render(tokenizer, PROMPT, before)[0].tokens, reply]))
        for tokens in ends:
            np.testing.assert_array_equal(one.tokens[: len(tokens)], tokens)
            expected[len(tokens) - 1] = (value, weight)
    assert left_out == 0
    assert {
        int(t): (one.targets[t], one.weights[t]) for t in np.flatnonzero(one.weights)
    } == expected


@pytest.mark.parametrize("room", [60, 75, 110, 200, 4096])
def test_long_trajectories_become_sequences_that_learn_everything_once(room):
    tokenizer, tree = word_tokenizer(), labelled(9, 1)
    whole, _ = render(tokenizer, PROMPT, last_state(tree))
    opening = whole.state_ends[0] + 1
    limit = opening + room
    values, no_labels = value_sequences(tokenizer, lambda task: PROMPT, [tree], limit)
    replies, no_steps = sft_sequences(tokenizer, lambda task: PROMPT, [last_state(tree)], limit)
    assert no_labels == no_steps == 0
    steps = [
        whole.tokens[a + 1 : b + 1].tolist()
        for a, b in zip(whole.state_ends, whole.state_ends[1:], strict=False)
    ]
    for one in (*values, *replies):
        assert len(one.tokens) <= limit
        np.testing.assert_array_equal(one.tokens[:opening], whole.tokens[:opening])
        rest = one.tokens[opening:].tolist()  # whole steps in a row
        runs = ([t for step in steps[a:b] for t in step] for a in range(10) for b in range(a, 10))
        assert rest in runs
    learned = sum(float(one.weights.sum()) for one in replies)
    assert learned == sum(end - begin for begin, end in whole.reply_spans)
    found = sorted(
        (one.targets[t], one.weights[t]) for one in values for t in np.flatnonzero(one.weights)
    )
    expected = sorted(
        (np.float32(value), np.float32(weight))
        for i, (value, weight) in enumerate(zip(tree.values, tree.weights, strict=True))
        for _ in range(2 if i else 1)
        if weight
    )
    assert found == expected
    assert (len(replies) > 1) == (room < len(whole.tokens) - opening)


def test_sequences_are_what_is_read_at_test_time():
    """Each labelled state ends its sequence as the renderer shows the state with this limit."""
    tokenizer, tree = word_tokenizer(), labelled(9, 1)
    limit = len(render(tokenizer, PROMPT, last_state(tree))[0].tokens) // 2
    sequences, _ = value_sequences(tokenizer, lambda task: PROMPT, [tree], limit)
    states = [
        render(tokenizer, PROMPT, dataclasses.replace(last_state(tree), steps=steps), limit)[0]
        for i in range(10)
        if tree.weights[i]
        for steps in [tree.steps[:i]]
    ]
    shown = {tuple(state.tokens.tolist()) for state in states}
    read = {
        tuple(one.tokens[: t + 1].tolist())
        for one in sequences
        for t in np.flatnonzero(one.weights)
    }
    assert len(sequences) > 1
    assert shown <= read


def long_step(index: int, **changes: Any):
    """A path of four steps, one of which is longer than a row; and a row's length."""
    tree = labelled(4, 2)
    old = tree.steps[index]
    if "observation" in changes:
        changes = {"transition": dataclasses.replace(old.transition, **changes)}
    steps = list(tree.steps)
    steps[index] = dataclasses.replace(old, **changes)
    tree = dataclasses.replace(tree, steps=tuple(steps))
    opening = render(word_tokenizer(), PROMPT, last_state(tree))[0].state_ends[0] + 1
    return tree, opening + 120


def test_an_observation_longer_than_a_row_is_shortened_and_its_reply_learned():
    tokenizer = word_tokenizer()
    tree, limit = long_step(1, observation="You see a door. " * 60)
    sequences, left_out = sft_sequences(tokenizer, lambda task: PROMPT, [last_state(tree)], limit)
    whole, _ = render(tokenizer, PROMPT, last_state(tree))
    assert left_out == 0
    assert sum(int(one.weights.sum()) for one in sequences) == sum(
        end - begin for begin, end in whole.reply_spans
    )
    assert max(len(one.tokens) for one in sequences) <= limit
    values, labels = value_sequences(tokenizer, lambda task: PROMPT, [tree], limit)
    assert labels == 0
    assert sum(int((one.weights > 0).sum()) for one in values) == sum(
        1 + (state > 0) for state, weight in enumerate(tree.weights) if weight
    )


def test_a_reply_longer_than_a_row_is_left_out_and_counted():
    tokenizer = word_tokenizer()
    tree, limit = long_step(1, reply="Thought: on and on. " * 60)
    sequences, left_out = sft_sequences(tokenizer, lambda task: PROMPT, [last_state(tree)], limit)
    whole, _ = render(tokenizer, PROMPT, last_state(tree))
    assert left_out == 1
    assert sum(int(one.weights.sum()) for one in sequences) == sum(
        end - begin for i, (begin, end) in enumerate(whole.reply_spans) if i != 1
    )


def test_sequences_with_nothing_to_learn_are_left_out():
    tokenizer, tree = word_tokenizer(), labelled(2)
    silent = dataclasses.replace(tree, weights=(0.0, 0.0, 0.0))
    assert value_sequences(tokenizer, lambda task: None, [silent], 4096) == ([], 0)
    assert sft_sequences(tokenizer, lambda task: None, [trajectory(0)], 4096) == ([], 0)


def test_an_opening_longer_than_a_row_names_task_and_key():
    with pytest.raises(UserError, match="length must be at least 41 for the opening of task toy/0"):
        sft_sequences(word_tokenizer(), lambda task: PROMPT, [trajectory(2)], 12)
