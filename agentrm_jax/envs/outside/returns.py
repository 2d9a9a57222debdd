"""The rule that maps the rewards of an environment from outside to a return in [0, 1]."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.contract import ContractError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RewardRule:
    """Maps the rewards of an episode to its return: `low` becomes 0 and `high` becomes 1.

    Attributes:
      low: The smallest value that an episode can reach; it becomes a return of 0.
      high: The largest value; it becomes a return of 1.
      of: The value that is mapped: `sum`, the sum of the rewards so far; `last`, the newest reward,
        for environments that report a level such as a score.
      clip: Whether values outside of `low` and `high` are cut to them; without it they are errors.
      success: An episode that ends with at least this return is a success.
    """

    low: float = 0.0
    high: float = 1.0
    of: Literal["sum", "last"] = "sum"
    clip: bool = False
    success: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(
                f"must be below high (got low {self.low:g}, high {self.high:g})", field="low"
            )
        if self.of not in ("sum", "last"):
            raise UserError(field="of", value=self.of, expected="one of sum, last")
        if not 0 <= self.success <= 1:
            raise UserError(field="success", value=self.success, expected="from 0 to 1")

    def mapped(self, value: float) -> float:
        """Returns the return of a value.

        Args:
          value: The sum of the rewards, or the newest reward.

        Raises:
          ContractError: It is outside of `low` and `high`, and is not clipped.
        """
        share = (value - self.low) / (self.high - self.low)
        if not self.clip and not -1e-6 <= share <= 1 + 1e-6:
            what = "the sum of the rewards" if self.of == "sum" else "the reward"
            raise ContractError(
                f"{what} is {value:g}, outside of reward.low = {self.low:g} and reward.high = "
                f"{self.high:g}; change them, or set reward.clip to true"
            )
        return min(1.0, max(0.0, share))


@dataclasses.dataclass(frozen=True, slots=True)
class Earned:
    """The rewards of an episode so far.

    Attributes:
      value: What the rule maps: the sum of the rewards, or the newest one.
      paid: The return so far.
    """

    value: float = 0.0
    paid: float = 0.0

    def after(self, reward: float, rule: RewardRule) -> Earned:
        """Returns the rewards after one more step.

        Args:
          reward: The reward of the step.
          rule: The rule that maps it.

        Raises:
          ContractError: See `RewardRule.mapped`; or the reward is not finite.
        """
        if not math.isfinite(reward):
            raise ContractError(f"reward must be a finite number (got {reward})")
        value = self.value + reward if rule.of == "sum" else reward
        return Earned(value, rule.mapped(value))


def is_success(earned: Earned, rule: RewardRule) -> bool:
    """Returns whether an episode that ends with these rewards is a success."""
    return earned.paid >= rule.success - 1e-9
