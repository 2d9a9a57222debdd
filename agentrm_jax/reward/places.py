"""Places of scores: at which ends of its steps a trajectory is scored, for any reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from agentrm_jax.core.beams import Kept, SelectingScorer
from agentrm_jax.core.fields import check_choice
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.reward.function import ScoreFunction, as_scorer

_OVER: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "mean": lambda scores: float(np.mean(scores)),
    "min": lambda scores: float(np.min(scores)),
    "max": lambda scores: float(np.max(scores)),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place at which a trajectory is scored.

    Attributes:
      end: `observation`, the state after the environment's answer to a step; or `action`, the state
        before that answer. The score at the last action is blind to the end of the episode.
      over: `last`, the end of the last step; or `mean`, `min`, `max` over the ends of all steps.
    """

    end: Literal["observation", "action"] = "observation"
    over: Literal["last", "mean", "min", "max"] = "last"

    def __post_init__(self) -> None:
        check_choice("end", self.end, ("observation", "action"))
        check_choice("over", self.over, tuple(_OVER))

    def states(self, trajectory: Trajectory) -> list[Trajectory]:
        """Returns the states whose scores make the score of a trajectory, in order.

        Args:
          trajectory: It may end with an action that is not answered: that is its last end then.

        Returns:
          At least one state. A trajectory without steps is scored as it is at every place.
        """
        count = len(trajectory.steps)
        first = 1 if count and self.over != "last" else count
        prefixes = [
            dataclasses.replace(trajectory, steps=trajectory.steps[:end])
            for end in range(first, count + 1)
        ]
        if self.end == "action":
            return [prefix.without_last_answer() for prefix in prefixes]
        return prefixes


PLACES: Mapping[str, Place] = {
    "observation": Place(),
    "action": Place(end="action"),
    "mean": Place(over="mean"),
    "min": Place(over="min"),
    "max": Place(over="max"),
}
"""The places that have a name."""


def placed(scorer: Scorer | ScoreFunction, place: Place | str) -> Scorer:
    """Returns a scorer that scores trajectories at a place.

    All states of a group are scored in one group of the given scorer. An explicit reward model
    reads what they have in common once; an implicit one reads each state from its beginning. A
    judge compares the states of all steps with each other.

    Args:
      scorer: A reward model or a function `(states) -> scores`. At the place `action` it reads
        states whose last step is not `answered`: it has no observation, reward 0, and is not done.
      place: `observation`, `action`, `mean`, `min`, `max`, or a `Place`.

    Returns:
      The scorer itself at the place `observation`. At the last action a scorer that selects the
      next beam (`SelectingScorer`) still does so; over several steps it does not.

    Raises:
      UserError: No place has this name, or the scorer is neither a reward model nor a function.
    """
    if not isinstance(place, Place):
        check_choice("place", place, tuple(PLACES))
        place = PLACES[place]
    inner = as_scorer(scorer)
    if place == PLACES["observation"]:
        return inner
    if isinstance(inner, SelectingScorer) and place.over == "last":
        return _SelectingPlacedScorer(inner, place)
    return PlacedScorer(inner, place)


class PlacedScorer:
    """Scores trajectories at a place; see `placed`.

    Args:
      scorer: The reward model.
      place: Where it scores.
    """

    def __init__(self, scorer: Scorer, place: Place) -> None:
        self.scorer, self.place = scorer, place

    @property
    def tokens_read(self) -> int:
        """Number of tokens that the reward model has read; 0 if it does not count them."""
        return getattr(self.scorer, "tokens_read", 0)

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns scores as `Scorer.score` does."""
        states = [[self.place.states(trajectory) for trajectory in group] for group in groups]
        flat = [[state for each in group for state in each] for group in states]
        over, scores = _OVER[self.place.over], []
        for group, found in zip(states, scores_of(self.scorer, flat), strict=True):
            values = iter(found)
            scores.append([over([next(values) for _ in each]) for each in group])
        return scores

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns the number of tokens read as `Scorer.cost` does."""
        return self.scorer.cost([s for trajectory in group for s in self.place.states(trajectory)])


class _SelectingPlacedScorer(PlacedScorer, SelectingScorer):
    """A `PlacedScorer` of one state for each trajectory, which also selects the next beam."""

    scorer: SelectingScorer

    def select(
        self,
        tasks: Sequence[tuple[Sequence[Trajectory], Sequence[float]]],
        expansion_width: int,
        beam_width: int,
    ) -> list[list[Kept]]:
        """Returns the next beams as `SelectingScorer.select` does."""
        at_place = [
            ([state for each in states for state in self.place.states(each)], finished)
            for states, finished in tasks
        ]
        return self.scorer.select(at_place, expansion_width, beam_width)
