"""Batches of packed rows, by Grain."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.packing import PackedRows


def batches(
    rows: PackedRows,
    batch_size: int,
    seed: int,
    *,
    start_update: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, shuffled anew in each epoch; the fields of `PackedRows` by name.

    The batch of an update depends on the seed and the update's number alone: resuming needs
    nothing else, and any number of processes sees the same global batch, each its own part.

    Args:
      batch_size: Rows of the global batch.
      start_update: Number of the first update.

    Yields:
      This process's part, batch_size / process_count rows.
    """
    if batch_size % process_count:
        raise UserError(
            f"fit.batch_size: {batch_size} rows do not divide among {process_count} processes"
        )
    import grain

    order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    own = batch_size // process_count
    update = start_update
    while True:
        first = update * batch_size + process_index * own
        yield rows.take(np.array([order[i] for i in range(first, first + own)]))
        update += 1
