"""An attempt at a task as text that a language model reads in a question."""

from __future__ import annotations

import bisect
from collections.abc import Callable

from agentrm_jax.core.records import Trajectory


def attempt_text(trajectory: Trajectory, dropped: int = 0) -> str:
    """Returns the replies and observations of a trajectory as text.

    Args:
      trajectory: The attempt.
      dropped: Number of its oldest steps that are left out; the text then says so.
    """
    lines = [f"(The first {dropped} steps are left out.)"] if dropped else []
    for step in trajectory.steps[dropped:]:
        lines += [step.reply, f"Observation: {step.transition.observation}"]
    return "\n".join(lines or ["(no step)"])


def shortened_attempt(trajectory: Trajectory, fits: Callable[[str], bool]) -> str | None:
    """Returns the text of an attempt without as many of its oldest steps as do not fit.

    Args:
      trajectory: The attempt.
      fits: Whether a text is short enough. If a text fits, texts with fewer steps fit as well.

    Returns:
      The longest text that fits; None if not even the text without steps does.
    """
    if fits(whole := attempt_text(trajectory)):
        return whole
    dropped = range(1, len(trajectory.steps) + 1)
    first = bisect.bisect_left(dropped, True, key=lambda n: fits(attempt_text(trajectory, n)))
    return attempt_text(trajectory, dropped[first]) if first < len(dropped) else None
