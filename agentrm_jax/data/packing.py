"""Sequences packed into rows of one length, so that training wastes few tokens on padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.chat import ChatTokenizer, render
from agentrm_jax.data.states import LabelledPath


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """One sequence: tokens int32 [T], and for each token a loss weight and a target float32 [T]."""

    tokens: np.ndarray
    weights: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """R rows of T tokens, each holding one or more sequences.

    Attributes:
      tokens: [R, T] int32.
      segments: [R, T] int32, 1, 2, ... for the sequences of a row; 0 is padding.
      positions: [R, T] int32, counted within each sequence.
      weights: [R, T] float32.
      targets: [R, T] float32.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some of the rows, by field."""
        return {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)}


def pack(sequences: Sequence[TokenSequence], length: int) -> PackedRows:
    """Best-fit decreasing: the longest first, each into the fullest row that has room.

    The same sequences always give the same rows.

    Raises:
      UserError: A sequence is longer than a row, or there is none.
    """
    if not sequences:
        raise UserError("there is nothing to train on: no sequence was made")
    longest = max(len(sequence.tokens) for sequence in sequences)
    if longest > length:
        raise UserError(f"fit.length: a sequence has {longest} tokens, rows have {length}")
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].tokens), i))
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens they have left
    for i in order:
        size = len(sequences[i].tokens)
        room = next((left for left in range(size, length + 1) if by_room[left]), None)
        if room is None:
            row, room = len(rows), length
            rows.append([])
        else:
            row = by_room[room].pop()
        rows[row].append(i)
        by_room[room - size].append(row)
    return _fill(sequences, rows, length)


def _fill(
    sequences: Sequence[TokenSequence], rows: Sequence[Sequence[int]], length: int
) -> PackedRows:
    shape = (len(rows), length)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights, targets = (np.zeros(shape, np.float32) for _ in range(2))
    for r, members in enumerate(rows):
        begin = 0
        for number, i in enumerate(members, start=1):
            sequence = sequences[i]
            at = slice(begin, begin + len(sequence.tokens))
            tokens[r, at] = sequence.tokens
            segments[r, at] = number
            positions[r, at] = np.arange(len(sequence.tokens))
            weights[r, at] = sequence.weights
            targets[r, at] = sequence.targets
            begin = at.stop
    return PackedRows(
        tokens=tokens, segments=segments, positions=positions, weights=weights, targets=targets
    )


def sft_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trajectories: Iterable[Trajectory],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Trajectories with weight 1 on the tokens of replies: what the policy learns to say.

    Returns:
      The sequences with anything to learn, and how many steps were left out, oldest first, to
      fit `length`.
    """
    sequences, left_out = [], 0
    for trajectory in trajectories:
        rendered, dropped = render(tokenizer, prompt_of(trajectory.task), trajectory, length)
        _check_opening(rendered.state_ends[0] + 1, length, trajectory.task)
        left_out += dropped
        weights = np.zeros(len(rendered.tokens), np.float32)
        for begin, end in rendered.reply_spans:
            weights[begin:end] = 1.0
        if weights.any():
            targets = np.zeros_like(weights)
            sequences.append(
                TokenSequence(tokens=rendered.tokens, weights=weights, targets=targets)
            )
    return sequences, left_out


def value_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    paths: Iterable[LabelledPath],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Paths with their labels at both ends of each step: after the action, and after the answer.

    A beam may score candidates before or after the environment answers; both ends are trained, so
    that both are familiar. The root has its state's end only.

    Returns:
      The sequences with a label, and how many labels were left out with steps that did not fit
      `length`.
    """
    sequences, left_out = [], 0
    for path in paths:
        task = path.trajectory.task
        rendered, dropped = render(tokenizer, prompt_of(task), path.trajectory, length)
        _check_opening(rendered.state_ends[0] + 1, length, task)
        weights = np.zeros(len(rendered.tokens), np.float32)
        targets = np.zeros_like(weights)
        states = [0, *range(dropped + 1, len(path.values))]
        left_out += sum(path.weights[s] > 0 for s in range(1, dropped + 1))
        for i, state in enumerate(states):
            ends = [rendered.state_ends[i]]
            if i:
                ends.append(rendered.action_ends[i - 1])
            targets[ends] = path.values[state]
            weights[ends] = path.weights[state]
        if weights.any():
            sequences.append(
                TokenSequence(tokens=rendered.tokens, weights=weights, targets=targets)
            )
    return sequences, left_out


def _check_opening(opening: int, length: int, task: Task) -> None:
    if opening > length:
        raise UserError(
            f"fit.length: the opening of task {task.task_id} takes {opening} tokens, rows have "
            f"{length}"
        )
