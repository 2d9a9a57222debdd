"""Batches: a function of seed and update alone, whatever the number of processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agentrm_jax.data.packing import PackedRows
from agentrm_jax.data.pipeline import batches


def numbered(num_rows: int) -> PackedRows:
    """Rows that carry their number in every field."""
    column = np.arange(num_rows)[:, None]
    whole = np.repeat(column, 3, axis=1)
    return PackedRows(
        tokens=whole.astype(np.int32), segments=whole.astype(np.int32),
        positions=whole.astype(np.int32), weights=whole.astype(np.float32),
        targets=whole.astype(np.float32),
    )  # fmt: skip


def first(count: int, *args, **kwargs) -> list[list[int]]:
    """The row numbers of the first batches."""
    found = itertools.islice(batches(*args, **kwargs), count)
    return [batch["tokens"][:, 0].tolist() for batch in found]


def test_fields_stay_together():
    batch = next(batches(numbered(10), 4, seed=0))
    assert sorted(batch) == ["positions", "segments", "targets", "tokens", "weights"]
    for value in batch.values():
        np.testing.assert_array_equal(value, batch["tokens"])
    assert batch["weights"].dtype == np.float32


def test_an_epoch_has_every_row_once_and_the_next_another_order():
    seen = list(itertools.chain(*first(6, numbered(12), 4, 0)))
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:] != list(range(12))


def test_epochs_run_on_across_batches():
    seen = list(itertools.chain(*first(10, numbered(10), 4, 0)))
    assert all(seen.count(row) == 4 for row in range(10))


def test_the_seed_decides():
    assert first(3, numbered(50), 4, 1) == first(3, numbered(50), 4, 1)
    assert first(3, numbered(50), 4, 1) != first(3, numbered(50), 4, 2)


@pytest.mark.parametrize("start", [1, 4, 9])
def test_resuming_needs_the_update_alone(start):
    whole = first(12, numbered(10), 4, 3)
    assert first(12 - start, numbered(10), 4, 3, start_update=start) == whole[start:]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_the_same_global_batches(count):
    whole = first(5, numbered(10), 8, 3)
    parts = [
        first(5, numbered(10), 8, 3, positions=np.split(np.arange(8), count)[i])
        for i in range(count)
    ]
    assert [list(itertools.chain(*own)) for own in zip(*parts, strict=True)] == whole


def test_positions_may_be_any():
    whole = first(5, numbered(10), 8, 3)
    assert first(5, numbered(10), 8, 3, positions=[6, 1]) == [[b[6], b[1]] for b in whole]


def test_fewer_rows_than_a_batch_repeat():
    (batch,) = first(1, numbered(3), 8, 0)
    assert set(batch) == {0, 1, 2}
