"""The layout of a decode batch: which branch of which request is decoded in which row.

Requests stand in groups by their number of branches n. In a group, each request has n slots. With
one group, rows and slots are the same; with several groups, rows are given to the branches that are
not done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from agentrm_jax.engine.cache.prefix_cache import Node
from agentrm_jax.engine.request import Reply


@dataclasses.dataclass(slots=True)
class Branch:
    """A reply that is being decoded.

    Attributes:
      pages: Pages for what decoding reads: first the token before the reply.
      tokens: The tokens decoded so far.
      log_probs: The log-probability of each of them.
      reply_length: The number of tokens of the reply, once it has ended.
      done: Whether it has ended or reached the length limit.
    """

    pages: list[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    reply_length: int | None = None
    done: bool = False

    def append(self, tokens: np.ndarray, log_probs: np.ndarray) -> None:
        """Adds the tokens that a call has decoded."""
        self.tokens += tokens.tolist()
        self.log_probs += log_probs.tolist()

    def reply(self) -> Reply:
        """Returns the reply."""
        stopped = self.reply_length is not None
        count = self.reply_length if self.reply_length is not None else len(self.tokens)
        return Reply(
            tokens=tuple(self.tokens[:count]),
            log_probs=tuple(self.log_probs[: count + stopped]),
            stopped=stopped,
        )


@dataclasses.dataclass(slots=True, eq=False)
class RunningRequest:
    """A request that has pages.

    Attributes:
      key: [2] uint32 random key data.
      leaf: The last node of its sequence without the last token, or None if nothing is before it.
      end: The position of the last token.
      last_token: The last token, which decoding reads first.
      branches: Its replies.
      rank: Requests of lower rank go first.
      ticket: Its number in the scheduler.
    """

    key: np.ndarray
    leaf: Node | None
    end: int
    last_token: int
    branches: list[Branch]
    rank: float = 0.0
    ticket: int = 0

    @property
    def open_branches(self) -> list[int]:
        """The numbers of the branches that are not done."""
        return [number for number, branch in enumerate(self.branches) if not branch.done]


Group = list[RunningRequest | None]
"""Requests with equally many branches; None for padding."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchLayout:
    """The groups, rows and slots of one call, see `DecodeRows`.

    Attributes:
      groups: The requests of each group.
      rows: For each row the request and the number of its branch; None for padding.
      slots: [D, R / D] int32, see `DecodeRows`.
    """

    groups: Sequence[Group]
    rows: Sequence[tuple[RunningRequest, int] | None]
    slots: np.ndarray | None

    def active_rows(self) -> Iterator[tuple[int, RunningRequest, Branch, int]]:
        """Yields (row, request, branch, number of the branch) of every row but padding."""
        for r, row in enumerate(self.rows):
            if row is not None:
                request, number = row
                yield r, request, request.branches[number], number


@dataclasses.dataclass(frozen=True, slots=True)
class BatchShape:
    """The fixed sizes of a decode batch; every device along `data` has equally many of each.

    Attributes:
      num_rows: Decode rows.
      branches: For each group, the branches of a request.
      capacities: For each group, its requests.
      data: The number of devices.
    """

    num_rows: int
    branches: tuple[int, ...]
    capacities: tuple[int, ...]
    data: int

    @classmethod
    def of(cls, rows: int, branches: Sequence[int], data: int) -> BatchShape:
        """Returns the shape in which each group alone could fill all rows.

        Each group has a capacity of at least one request on every device.

        Args:
          rows: The number of rows, about.
          branches: The numbers of branches that requests have.
          data: The number of devices.
        """
        groups = tuple(sorted(set(branches), reverse=True))
        each = -(-rows // data)
        if len(groups) == 1:  # rows and slots are the same
            each = max(1, each // groups[0]) * groups[0]
        capacities = tuple(data * max(1, each // n) for n in groups)
        return cls(num_rows=data * each, branches=groups, capacities=capacities, data=data)

    def admits(self, running: Sequence[RunningRequest], request: RunningRequest) -> bool:
        """Returns whether there is a row and a capacity for one more request."""
        n = len(request.branches)
        of_group = sum(len(other.branches) == n for other in running)
        return (
            num_open_branches(running) < self.num_rows
            and of_group < self.capacities[self.branches.index(n)]
        )

    def layout(self, running: Sequence[RunningRequest]) -> BatchLayout:
        """Gives rows to the open branches of requests, in the order of the requests.

        Args:
          running: At most as many of each group as its capacity.
        """
        groups: list[Group] = [[None] * count for count in self.capacities]
        rows: list[tuple[RunningRequest, int] | None] = [None] * self.num_rows
        on_device = [count // self.data for count in self.capacities]
        group_slots = [n * count for n, count in zip(self.branches, on_device, strict=True)]
        R, S = self.num_rows // self.data, sum(group_slots)
        slots = np.full((self.data, R), S, np.int32)
        num_requests = np.zeros((len(groups), self.data), int)
        num_rows = np.zeros(self.data, int)
        for request in running:
            g = self.branches.index(len(request.branches))
            free = np.where(num_requests[g] < on_device[g], R - num_rows, -1)
            device = int(free.argmax())
            if free[device] <= 0:
                continue
            index = num_requests[g, device]
            slot = sum(group_slots[:g]) + index * len(request.branches)
            for number in request.open_branches[: free[device]]:
                r = slot + number if S == R else num_rows[device]
                rows[device * R + r] = request, number
                slots[device, r] = slot + number
                num_rows[device] += 1
            groups[g][device * on_device[g] + index] = request
            num_requests[g, device] += 1
        return BatchLayout(groups=groups, rows=rows, slots=None if S == R else slots)


def num_open_branches(requests: Sequence[RunningRequest]) -> int:
    """Returns the number of branches of some requests that are not done."""
    return sum(len(request.open_branches) for request in requests)
