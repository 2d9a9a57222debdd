"""The nodes of the search of one task: one record for each state, as reports draw it."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchNode:
    """A state that a search reached.

    The first node of a search is its root, the state without steps; a parent stands before its
    children.

    Attributes:
      parent: Index of the node before the last step; -1 for the root.
      reply: The policy's text of the last step; empty for the root.
      action: The action of the last step; empty for the root.
      observation: The text that answers it; the first observation for the root.
      outcome: The return so far, in [0, 1].
      done: Whether the episode ended here.
      success: Whether the task was solved here.
      score: The reward model's score of the state; None if it was not scored.
      visits: How often the search passed through: iterations of a tree, particles of a population.
      value: Mean of what was backed up to the node; None for methods without a backup.
      status: `kept` if the search went on from it, `removed` if it did not, `finished` if its
        episode ended and it was a possible answer, `failed` if its environment failed.
      chosen: Whether it is on the path to the answer.
    """

    parent: int
    reply: str = ""
    action: str = ""
    observation: str = ""
    outcome: float = 0.0
    done: bool = False
    success: bool = False
    score: float | None = None
    visits: int = 1
    value: float | None = None
    status: Literal["kept", "removed", "finished", "failed"] = "kept"
    chosen: bool = False
