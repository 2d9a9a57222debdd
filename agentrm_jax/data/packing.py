"""Sequences packed into rows of one length, so that training wastes few tokens on padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.chat import ChatTokenizer, Rendered, first_steps, render
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

    One that is longer than `length` becomes several sequences; see `_windows`.

    Returns:
      The sequences with anything to learn, and how many steps are longer than `length` themselves
      and were left out.
    """
    sequences, left_out = [], 0
    for trajectory in trajectories:
        rendered, _ = render(tokenizer, prompt_of(trajectory.task), trajectory)
        _check_opening(rendered, length, trajectory.task)
        weights = np.zeros(len(rendered.tokens), np.float32)
        for begin, end in rendered.reply_spans:
            weights[begin:end] = 1.0
        cut, lost = _windows(rendered, weights, np.zeros_like(weights), length)
        sequences += cut
        left_out += len(lost)
    return sequences, left_out


def value_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    paths: Iterable[LabelledPath],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Paths with their labels at both ends of each step: after the action, and after the answer.

    A beam may score candidates before or after the environment answers; both ends are trained, so
    that both are familiar. The root has its state's end only. A path that is longer than `length`
    becomes several sequences; see `_windows`.

    Returns:
      The sequences with a label, and how many labels were left out with steps that are longer than
      `length` themselves.
    """
    sequences, left_out = [], 0
    for path in paths:
        task = path.trajectory.task
        rendered, _ = render(tokenizer, prompt_of(task), path.trajectory)
        _check_opening(rendered, length, task)
        weights = np.zeros(len(rendered.tokens), np.float32)
        targets = np.zeros_like(weights)
        for state, (value, weight) in enumerate(zip(path.values, path.weights, strict=True)):
            ends = [rendered.state_ends[state]]
            if state:
                ends.append(rendered.action_ends[state - 1])
            targets[ends], weights[ends] = value, weight
        cut, lost = _windows(rendered, weights, targets, length)
        sequences += cut
        left_out += sum(path.weights[step + 1] > 0 for step in lost)
    return sequences, left_out


def _windows(
    rendered: Rendered, weights: np.ndarray, targets: np.ndarray, length: int
) -> tuple[list[TokenSequence], list[int]]:
    """A rendered trajectory as sequences of at most `length` tokens, each weight in one of them.

    States that keep the same steps at test time (`chat.first_steps`) share a sequence: the opening,
    earlier steps for context, and the steps that are new in it.

    Returns:
      The sequences that have a weight, and the numbers of steps that are too long for any.
    """
    ends = [end + 1 for end in rendered.state_ends]  # ends[i]: where step i begins
    firsts = first_steps(np.diff(ends).tolist(), length - ends[0])
    sequences: list[TokenSequence] = []
    for first in dict.fromkeys(firsts):
        own = [state for state, kept in enumerate(firsts) if kept == first]
        at = np.r_[0 : ends[0], ends[first] : ends[own[-1]]]
        new = ends[own[0] - 1] if own[0] else 0  # where what no earlier sequence holds begins
        held = weights[at] * (at >= new)
        if held.any():
            sequences.append(
                TokenSequence(tokens=rendered.tokens[at], weights=held, targets=targets[at])
            )
    return sequences, [i for i in range(len(ends) - 1) if firsts[i + 1] == i + 1]


def _check_opening(rendered: Rendered, length: int, task: Task) -> None:
    opening = rendered.state_ends[0] + 1
    if opening > length:
        raise UserError(
            f"fit.length: the opening of task {task.task_id} takes {opening} tokens, rows have "
            f"{length}"
        )
