"""A scorer from a plain function: a rule, a classifier of another library, a server's client."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import printable

ScoreFunction = Callable[[Sequence[Trajectory]], Sequence[float]]
"""`function(states) -> one score for each state`."""


class FunctionScorer:
    """The reward model of a plain function.

    Args:
      function: `function(states)` returns one number for each state (`Trajectory`) of one task.
        Larger is better; NaN says that the function cannot decide. A trajectory whose environment
        failed is scored as well: it is not `done`, and has an empty `first_observation` if the
        reset failed.

    Raises:
      UserError: It is not callable. From `score`: it returns another number of scores, or something
        that is no number.
    """

    def __init__(self, function: ScoreFunction) -> None:
        if not callable(function):
            raise UserError(
                "scorer must be a function (states) -> list of numbers, or have the methods score "
                f"and cost (got {type(function).__name__})"
            )
        self.function = function

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Scores groups of states, one call for each group.

        Args:
          groups: Each holds states of one task.

        Returns:
          For each group one score for each state.

        Raises:
          UserError: The function returns another number of scores, or something that is no number.
        """
        return [self._scores(group) for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns the number of tokens that scoring reads.

        Args:
          group: States of one task.

        Returns:
          0: a function reads no tokens that could be counted.
        """
        return 0

    def _scores(self, group: Sequence[Trajectory]) -> list[float]:
        if not group:
            return []
        task_id = group[0].task.task_id
        try:
            answer = self.function(group)
        except Exception as error:
            error.add_note(f"raised by the score function for task {printable(task_id)}")
            raise
        try:
            scores = [float(score) for score in answer]
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"scorer: must return a list of {len(group)} numbers for task "
                f"{printable(task_id)} (got {printable(repr(answer))[:60]})"
            ) from None
        if len(scores) != len(group):
            raise UserError(
                f"scorer: must return {len(group)} numbers for task {printable(task_id)} "
                f"(got {len(scores)})"
            )
        return [score if math.isfinite(score) else math.nan for score in scores]


def as_scorer(scorer: Scorer | ScoreFunction) -> Scorer:
    """Returns a scorer from a scorer or a plain function.

    Args:
      scorer: An object with the methods of `Scorer`, or a function `(states) -> scores`.

    Raises:
      UserError: It is neither.
    """
    if all(hasattr(scorer, method) for method in ("score", "cost")):
        return scorer  # pyright: ignore[reportReturnType]
    return FunctionScorer(scorer)  # pyright: ignore[reportArgumentType]
