"""Shortest paths as AgentBoard's BabyAI text finds them, on bare coordinates."""

from __future__ import annotations

from collections.abc import Iterable

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Column and row steps of facing right, down, left, up: minigrid's directions 0 to 3."""

Position = tuple[int, int]
Pose = tuple[int, int, int]
"""Column, row, direction."""


class Paths:
    """Shortest moves to poses (column, row, direction) within view, searched as far as asked.

    Only solid things in view block: doors do not, nor does what is hidden, so a path can fail on
    the way. Which of several shortest paths is taken follows AgentBoard's search, whose queue
    holds a pose once for each path to it: the pose's last entry decides its parent, the first
    entry which of the poses at a target is reached. Hence two orders of each level's poses.
    """

    def __init__(self, start: Pose, view_size: int, blocked: Iterable[Position]):
        self._start = start
        self._blocked = frozenset(blocked)
        self._columns, self._rows = _search_ranges(start, view_size)
        self._parent: dict[Pose, tuple[Pose, int]] = {}
        self._rank: dict[Pose, int] = {start: 0}
        self._by_first, self._by_last = [start], [start]

    def _deepen(self) -> None:
        """Finds the poses that are one move further away."""
        children = {pose: self._children(pose) for pose in self._by_first}
        by_first = dict.fromkeys(c for pose in self._by_first for c, _ in children[pose])
        by_last: dict[Pose, None] = {}
        for pose in self._by_last:
            for child, move in children[pose]:
                by_last.pop(child, None)  # a key that is set again would keep its place
                by_last[child] = None
                self._parent[child] = (pose, move)
        self._by_first, self._by_last = list(by_first), list(by_last)
        for pose in self._by_first:
            self._rank[pose] = len(self._rank)

    def _children(self, pose: Pose) -> list[tuple[Pose, int]]:
        x, y, facing = pose
        dx, dy = DIRECTIONS[facing]
        found = [((x, y, (facing - 1) % 4), LEFT), ((x, y, (facing + 1) % 4), RIGHT)]
        ahead = (x + dx, y + dy)
        if ahead[0] in self._columns and ahead[1] in self._rows and ahead not in self._blocked:
            found.insert(0, ((*ahead, facing), FORWARD))
        return [(child, move) for child, move in found if child not in self._rank]

    def facing(self, target: Position) -> tuple[int, ...] | None:
        """The moves to a pose next to the target that looks at it; None if none is found."""
        x, y = target
        return self._to([(x - dx, y - dy, facing) for facing, (dx, dy) in enumerate(DIRECTIONS)])

    def onto(self, target: Position) -> tuple[int, ...] | None:
        """The moves onto the target; None if none is found."""
        return self._to([(*target, facing) for facing in range(4)])

    def _to(self, poses: list[Pose]) -> tuple[int, ...] | None:
        while not (known := [pose for pose in poses if pose in self._rank]):
            if not self._by_first:
                return None
            self._deepen()
        pose = min(known, key=self._rank.__getitem__)
        moves: list[int] = []
        while pose != self._start:
            pose, move = self._parent[pose]
            moves.append(move)
        return tuple(reversed(moves))


def _search_ranges(start: Pose, size: int) -> tuple[range, range]:
    """The columns and rows that a path may use: the view, and in two directions a bit more.

    AgentBoard's ranges run from the view's far left corner to one past its near right corner.
    Where they run downwards that last line, just outside the view, is included.
    """
    x, y, facing = start
    dx, dy = DIRECTIONS[facing]
    half = size // 2

    def span(corner: int, step: int) -> range:
        end = corner + size * step
        return range(end, corner + 1) if end < corner else range(corner, end)

    left_x, left_y = x + dx * (size - 1) + dy * half, y + dy * (size - 1) - dx * half
    return span(left_x, -dx - dy), span(left_y, -dy + dx)
