"""Sequences packed into rows of one length, so that training wastes few tokens on padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.sequences import TokenSequence


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """R rows of T tokens, each holding one or more sequences.

    Attributes:
      tokens: [R, T] int32.
      segments: [R, T] int32, 1, 2, ... for the sequences of a row; 0 is padding.
      positions: [R, T] int32, counted within each sequence, or along each path of a tree.
      weights: [R, T] float32; or [R, L], of the tokens `only`.
      targets: As weights.
      subtree_ends: [R, T] int32, if any sequence is a tree: the index after the last token that
        attends to each one (`model.attention.causal_attention`).
      siblings: As weights, int32, if any sequence has them: a number that labels of siblings share
        (`data.sequences.TokenSequence`), 0 for none.
      predicted: [R, T] bool, if any sequence has them: the tokens of observations that an auxiliary
        loss predicts.
      only: [R, L] int32, the tokens that weights and targets are of, where it is not all. What
        fills up a row has no weight.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    targets: np.ndarray
    subtree_ends: np.ndarray | None = None
    siblings: np.ndarray | None = None
    predicted: np.ndarray | None = None
    only: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some of the rows, by field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value[rows] for name, value in fields.items() if value is not None}


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


def only_labelled(
    rows: PackedRows, *, siblings: bool = False, predicted: bool = False
) -> PackedRows:
    """Returns the rows with weights and targets of the tokens alone that have a weight.

    Args:
      rows: Rows with weights of all tokens.
      siblings: Whether `siblings` is kept as well.
      predicted: Whether `predicted` is kept as well.
    """
    most = int((rows.weights != 0).sum(axis=1).max())
    first = np.argsort(rows.weights == 0, axis=1, kind="stable")[:, : max(most, 1)].astype(np.int32)
    kept: dict[str, np.ndarray | None] = {"siblings": None}
    if not predicted:
        kept["predicted"] = None
    for name in ("weights", "targets", *(["siblings"] if siblings else [])):
        kept[name] = np.take_along_axis(getattr(rows, name), first, axis=1)
    return dataclasses.replace(rows, only=first, **kept)


def _fill(
    sequences: Sequence[TokenSequence], rows: Sequence[Sequence[int]], length: int
) -> PackedRows:
    shape = (len(rows), length)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights, targets = (np.zeros(shape, np.float32) for _ in range(2))
    subtree_ends, siblings = np.full(shape, length, np.int32), np.zeros(shape, np.int32)
    predicted = np.zeros(shape, bool)
    for r, members in enumerate(rows):
        begin = 0
        for number, i in enumerate(members, start=1):
            sequence = sequences[i]
            at = slice(begin, begin + len(sequence.tokens))
            tokens[r, at] = sequence.tokens
            segments[r, at] = number
            own = sequence.positions
            positions[r, at] = np.arange(len(sequence.tokens)) if own is None else own
            subtree_ends[r, at] = (
                at.stop if sequence.subtree_ends is None else begin + sequence.subtree_ends
            )
            weights[r, at] = sequence.weights
            targets[r, at] = sequence.targets
            if sequence.siblings is not None:
                siblings[r, at] = sequence.siblings
            if sequence.predicted is not None:
                predicted[r, at] = sequence.predicted
            begin = at.stop
    trees = any(sequence.subtree_ends is not None for sequence in sequences)
    labelled = any(sequence.siblings is not None for sequence in sequences)
    return PackedRows(
        tokens=tokens,
        segments=segments,
        positions=positions,
        weights=weights,
        targets=targets,
        subtree_ends=subtree_ends if trees else None,
        siblings=siblings if labelled else None,
        predicted=predicted if any(s.predicted is not None for s in sequences) else None,
    )
