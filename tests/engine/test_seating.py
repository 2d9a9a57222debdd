"""Where conversations, their rows and pieces stand in a call."""

from __future__ import annotations

import numpy as np
import pytest

from agentrm_jax.engine.schedule.batch import Conversation, Row, Seating, seat_pieces


def conversation(n: int, done: int = 0) -> Conversation:
    rows = [Row(pages=[], done=branch < done) for branch in range(n)]
    return Conversation(np.zeros(2, np.uint32), None, 0, 0, rows)


@pytest.mark.parametrize(
    ("rows", "branches", "data", "num_rows", "places"),
    [
        (32, (5, 1), 1, 32, (6, 32)),
        (5, (5,), 1, 5, (1,)),
        (3, (1, 5), 1, 3, (1, 3)),  # for one conversation at least, some rows at a time
        (64, (5,), 4, 60, (12,)),
        (64, (5, 1), 4, 64, (12, 64)),  # equally many on each device
        (8, (4,), 4, 16, (4,)),
    ],
)
def test_places(rows, branches, data, num_rows, places):
    found = Seating.of(rows, branches, data)
    assert (found.num_rows, found.places) == (num_rows, places)


@pytest.mark.parametrize("data", [1, 2, 4])
def test_every_row_stands_in_a_slot_of_its_conversation_on_its_own_device(data):
    """Random conversations, some of whose rows are done; the first come first."""
    rng = np.random.default_rng(data)
    seating = Seating.of(32, (5, 3, 1), data)
    for _ in range(50):
        running: list[Conversation] = []
        for n in rng.choice([5, 3, 1], size=rng.integers(1, 60), p=[0.2, 0.2, 0.6]).tolist():
            one = conversation(n, done=int(rng.integers(n)))
            if seating.takes(running, one):
                running.append(one)
        seats = seating.seat(running)
        assert seats.slots is not None
        undone = [(id(c), branch) for c in running for branch in c.undone]
        taken = {(id(c), branch): r for r, c, branch in seats.taken()}
        # With several devices a place may be where no row is left.
        assert list(taken) if data > 1 else sorted(taken) == sorted(undone[:32])
        assert set(taken) <= set(undone)
        assert data > 1 or len(taken) == min(32, len(undone))
        R = 32 // data
        counts = [len(lane) // data for lane in seats.lanes]
        for r, c, branch in seats.taken():
            device, slot = r // R, int(seats.slots[r // R, r % R])
            lane = seating.branches.index(len(c.rows))
            place, own_branch = divmod(
                slot - sum(n * k for n, k in zip(seating.branches[:lane], counts, strict=False)),
                len(c.rows),
            )
            assert own_branch == branch
            assert seats.lanes[lane][device * counts[lane] + place] is c
        slots = [slot for row in seats.slots for slot in row.tolist()]
        total = sum(n * k for n, k in zip(seating.branches, counts, strict=True))
        assert slots.count(total) == 32 - len(taken)  # padding


def test_one_lane_has_a_row_for_every_slot():
    running = [conversation(4), conversation(4, done=3)]
    seats = Seating.of(16, (4,), 2).seat(running)
    assert seats.slots is None
    assert [(r, c is running[0], b) for r, c, b in seats.taken()] == [
        (0, True, 0), (1, True, 1), (2, True, 2), (3, True, 3), (11, False, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "blocks", "found"),
    [
        ([5, 5, 6, 1], 1, [0, 1, 2]),  # the block is full of tokens
        ([1, 1, 1, 1, 1], 1, [0, 1, 2, 3]),  # the block has no place
        ([9, 8, 7, 9, 1], 2, [0, 4, 5]),  # what comes later waits, though it would fit
        ([], 2, []),
    ],
)
def test_pieces_stand_in_blocks_in_their_order(lengths, blocks, found):
    assert seat_pieces(lengths, blocks, places=4, room=16) == found
