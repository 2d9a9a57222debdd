"""The budget of a run: the tokens and the hours after which it stops and can be resumed."""

from __future__ import annotations

import dataclasses
import time

from agentrm_jax.core.fields import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Limits at which a run stops. What is finished is stored, and the run can be resumed.

    They change no result: trees and trajectories are the same in one go or in parts.

    Attributes:
      tokens: Most tokens that the policy decodes, over all stages and restarts: the run's own model
        or a served one. A search stops at the next finished iteration or trajectory. With leases
        the tokens of all processes count, as of their last heartbeats; joined processes have an
        equal share each. 0 sets no limit.
      hours: Most hours of one command. Searches stop as above, training after the running update,
        with a checkpoint. 0 sets no limit.
    """

    tokens: int = 0
    hours: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, tokens="[0, 1e18]", hours="[0, 1e6]")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The budget of a command.

    Attributes:
      config: The limits.
      tokens_before: Tokens that other stages of the run have decoded.
      began: `time.monotonic()` at which the command began.
    """

    config: BudgetConfig
    tokens_before: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def ends(self) -> float:
        """`time.monotonic()` at which the hours are over; infinite without a limit."""
        return self.began + self.config.hours * 3600 if self.config.hours else float("inf")

    def spent(self, tokens: int) -> str | None:
        """Returns the key of the limit that is reached, None if none is.

        Args:
          tokens: Tokens that this stage has decoded, over restarts.
        """
        if self.config.tokens and self.tokens_before + tokens >= self.config.tokens:
            return "budget.tokens"
        return "budget.hours" if time.monotonic() >= self.ends else None
