"""Batches of packed rows, by Grain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from agentrm_jax.data.packing import PackedRows


def batches(
    rows: PackedRows,
    batch_size: int,
    seed: int,
    *,
    start_update: int = 0,
    positions: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, shuffled again in each epoch; the fields of `PackedRows` by name.

    The batch of an update depends on the seed and the update's number alone: resuming needs
    nothing else, and any number of processes sees the same global batch, each its own part.

    Args:
      batch_size: Rows of the global batch.
      start_update: Number of the first update.
      positions: Which rows of the global batch are wanted; all by default. Others are not read.

    Yields:
      Those rows, in the order of `positions`.
    """
    import grain

    order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    wanted = range(batch_size) if positions is None else positions
    update = start_update
    while True:
        first = update * batch_size
        yield rows.take(np.array([order[first + position] for position in wanted]))
        update += 1
