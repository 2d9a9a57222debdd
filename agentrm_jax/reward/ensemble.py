"""Ensembles of reward models: one score of several, lowered by their disagreement."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.reward.function import ScoreFunction, as_scorer

Scale = Literal["none", "rank", "standard"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """The rule of an ensemble.

    Attributes:
      scale: How scores of different reward models become comparable. `none` takes them as they are:
        members of one kind, trained on one target. `rank` takes the rank within the trajectories of
        a task, in [0, 1], equal scores sharing the mean of their ranks: no beam search. `standard`
        subtracts the mean and divides by the standard deviation that the member's scores have on
        training trajectories.
      reduction: `mean` of the members, or `min`, the most pessimistic member.
      beta: Pessimism: `mean` minus beta times the standard deviation over the members.
      weights: A weight of each member for `mean` and its deviation, in any unit; empty: equal ones.
    """

    scale: Scale = "none"
    reduction: Literal["mean", "min"] = "mean"
    beta: float = 0.0
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, beta="[0, inf)")
        check_choice("scale", self.scale, ("none", "rank", "standard"))
        check_choice("reduction", self.reduction, ("mean", "min"))
        if any(not np.isfinite(weight) or weight <= 0 for weight in self.weights):
            raise UserError(field="weights", value=list(self.weights), expected="all above 0")
        if self.reduction == "min" and (self.beta or self.weights):
            field = "beta" if self.beta else "weights"
            raise UserError("must be left out if reduction is min", field=field)

    def combined(self, scores: np.ndarray) -> np.ndarray:
        """Returns the scores of the ensemble, [n] float64.

        Args:
          scores: [members, n] float64 on one scale.
        """
        if self.reduction == "min":
            return scores.min(axis=0)
        weights = np.asarray(self.weights or np.ones(len(scores)), float)
        mean = np.average(scores, axis=0, weights=weights)
        spread = np.average(np.square(scores - mean), axis=0, weights=weights)
        return mean - self.beta * np.sqrt(spread)


class EnsembleScorer:
    """Scores trajectories by several reward models.

    If a member does not decide about a trajectory, the ensemble does not decide about its group:
    all its scores are NaN.

    Args:
      members: Reward models or functions `(states) -> scores`, at least two.
      settings: How their scores become one; equal weights, no pessimism and no scale by default.
      moments: For `scale: standard` the mean and the standard deviation of each member's scores on
        training trajectories (`moments_of`).

    Raises:
      UserError: There are too few members, or not as many weights or moments as members.
    """

    def __init__(
        self,
        members: Sequence[Scorer | ScoreFunction],
        settings: EnsembleSettings | None = None,
        moments: Sequence[tuple[float, float]] = (),
    ) -> None:
        self.members = tuple(map(as_scorer, members))
        self.settings = settings or EnsembleSettings()
        self.moments = tuple(moments)
        count, weights = len(self.members), self.settings.weights
        if count < 2:
            raise UserError(field="members", value=count, expected="at least 2 reward models")
        if weights and len(weights) != count:
            raise UserError(field="weights", value=len(weights), expected=f"{count} numbers")
        if (len(self.moments) or count) != count or (
            self.settings.scale == "standard" and not self.moments
        ):
            expected = f"a mean and a deviation of each of the {count} members"
            raise UserError(field="moments", value=len(self.moments), expected=expected)

    @property
    def tokens_read(self) -> int:
        """Number of tokens that the members have read; those that count none have 0."""
        return sum(getattr(member, "tokens_read", 0) for member in self.members)

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns the scores of the ensemble.

        Args:
          groups: Each holds trajectories of one task.

        Returns:
          For each group a score for each trajectory; NaN for all of them if a member has a NaN.

        Raises:
          UserError: A member returns another number of scores, or something else.
        """
        every = [scores_of(member, groups) for member in self.members]
        return [self._combined(scores) for scores in zip(*every, strict=True)]

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns the number of tokens that scoring a group reads.

        Args:
          group: Trajectories of one task.

        Returns:
          The sum over the members.
        """
        return sum(member.cost(group) for member in self.members)

    def _combined(self, scores: Sequence[Sequence[float]]) -> list[float]:
        """The scores of a group from those of each member."""
        found = np.asarray(scores, np.float64)
        if np.isnan(found).any():
            return [float("nan")] * found.shape[1]
        if self.settings.scale == "rank":
            found = _ranks(found)
        elif self.settings.scale == "standard":
            means, deviations = np.asarray(self.moments).T[..., None]
            found = (found - means) / deviations
        return self.settings.combined(found).tolist()


def _ranks(scores: np.ndarray) -> np.ndarray:
    """The ranks in [0, 1] of the scores in each row, [members, n]; equal ones have their mean."""
    below = (scores[:, None, :] < scores[:, :, None]).sum(axis=2)
    equal = (scores[:, None, :] == scores[:, :, None]).sum(axis=2) - 1
    return (below + equal / 2) / max(scores.shape[1] - 1, 1)


def moments_of(scores: Sequence[float], name: str = "a member") -> tuple[float, float]:
    """Returns the mean and the standard deviation of a reward model's scores.

    Args:
      scores: Its scores of training trajectories. NaN, undecided, does not count.
      name: The name of the reward model, for errors.

    Raises:
      UserError: All scores are equal, or there is none.
    """
    decided = np.asarray([score for score in scores if np.isfinite(score)], np.float64)
    if not len(decided) or np.all(decided == decided[0]):
        raise UserError(
            f"must not be standard: {name} gives one and the same score to the {len(decided)} "
            "training trajectories that it decides about; leave it out, or take scale: rank",
            field="scale",
        )
    return float(decided.mean()), float(decided.std())
