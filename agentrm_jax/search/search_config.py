"""The configuration of an exploration."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from agentrm_jax.core.fields import check_fields
from agentrm_jax.search.selection import SELECTION_RULES, UCB, SelectionRule

_UCB = UCB()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The search (paper section 3.2).

    Attributes:
      num_iterations: Iterations of each tree.
      expansion_width: Turns sampled when a node is expanded; equal actions are merged.
      num_rollouts: Rollouts from the selected child in each iteration; the return of each is backed
        up. 1 is the paper's.
      selection: The rule by which the search enters the children of a node.
      concurrency: Trees that grow at the same time. It changes speed, never results.
    """

    num_iterations: int = 40
    expansion_width: int = 5
    num_rollouts: int = 1
    selection: Annotated[SelectionRule, SELECTION_RULES] = _UCB
    concurrency: int = 64

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_iterations="[1, 1000000]",
            expansion_width="[1, 10000]",
            num_rollouts="[1, 10000]",
            concurrency="[1, 100000]",
        )

    @property
    def branches(self) -> tuple[int, ...]:
        """The numbers of turns that requests ask for: to expand a node, to begin several rollouts,
        and to continue one."""
        return tuple(dict.fromkeys((self.expansion_width, self.num_rollouts, 1)))
