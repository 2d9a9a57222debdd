"""The layout of decode batches, and the packing of prefill batches."""

from __future__ import annotations

import numpy as np
import pytest

from agentrm_jax.engine.chunked_prefill import pack_groups
from agentrm_jax.engine.schedule.batch import BatchShape, Branch, RunningRequest


def running_request(n: int, done: int = 0) -> RunningRequest:
    branches = [Branch(pages=[], done=number < done) for number in range(n)]
    return RunningRequest(np.zeros(2, np.uint32), None, 0, 0, branches)


@pytest.mark.parametrize(
    ("rows", "branches", "data", "num_rows", "capacities"),
    [
        (32, (5, 1), 1, 32, (6, 32)),
        (5, (5,), 1, 5, (1,)),
        (3, (1, 5), 1, 3, (1, 3)),  # for one request at least, some rows at a time
        (64, (5,), 4, 60, (12,)),
        (64, (5, 1), 4, 64, (12, 64)),  # equally many on each device
        (8, (4,), 4, 16, (4,)),
    ],
)
def test_capacities(rows, branches, data, num_rows, capacities):
    shape = BatchShape.of(rows, branches, data)
    assert (shape.num_rows, shape.capacities) == (num_rows, capacities)


@pytest.mark.parametrize("data", [1, 2, 4])
def test_every_row_has_a_slot_of_its_request_on_its_own_device(data):
    """Random requests with some branches done; the first requests get rows first."""
    rng = np.random.default_rng(data)
    shape = BatchShape.of(32, (5, 3, 1), data)
    for _ in range(50):
        running: list[RunningRequest] = []
        for n in rng.choice([5, 3, 1], size=rng.integers(1, 60), p=[0.2, 0.2, 0.6]).tolist():
            request = running_request(n, done=int(rng.integers(n)))
            if shape.admits(running, request):
                running.append(request)
        layout = shape.layout(running)
        assert layout.slots is not None
        waiting = [(id(q), number) for q in running for number in q.open_branches]
        placed = {(id(q), number): r for r, q, _, number in layout.active_rows()}
        # With several devices, a group may have a capacity on a device without a free row.
        assert list(placed) if data > 1 else sorted(placed) == sorted(waiting[:32])
        assert set(placed) <= set(waiting)
        assert data > 1 or len(placed) == min(32, len(waiting))
        R = 32 // data
        counts = [len(group) // data for group in layout.groups]
        for r, request, branch, number in layout.active_rows():
            assert request.branches[number] is branch
            device, slot = r // R, int(layout.slots[r // R, r % R])
            g = shape.branches.index(len(request.branches))
            before = sum(n * k for n, k in zip(shape.branches[:g], counts, strict=False))
            index, own_number = divmod(slot - before, len(request.branches))
            assert own_number == number
            assert layout.groups[g][device * counts[g] + index] is request
        slots = [slot for row in layout.slots for slot in row.tolist()]
        total = sum(n * k for n, k in zip(shape.branches, counts, strict=True))
        assert slots.count(total) == 32 - len(placed)  # padding


def test_one_group_has_a_row_for_every_slot():
    running = [running_request(4), running_request(4, done=3)]
    layout = BatchShape.of(16, (4,), 2).layout(running)
    assert layout.slots is None
    assert [(r, q is running[0], number) for r, q, _, number in layout.active_rows()] == [
        (0, True, 0), (1, True, 1), (2, True, 2), (3, True, 3), (11, False, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "bins", "numbers"),
    [
        ([5, 5, 6, 1], 1, [0, 1, 2]),  # the bin is full of tokens
        ([1, 1, 1, 1, 1], 1, [0, 1, 2, 3]),  # the bin has no further group
        ([9, 8, 7, 9, 1], 2, [0, 4, 5]),  # what comes later waits, though it would fit
        ([], 2, []),
    ],
)
def test_groups_are_packed_into_bins_in_their_order(lengths, bins, numbers):
    assert pack_groups(lengths, bins, groups_per_bin=4, bin_tokens=16) == numbers
