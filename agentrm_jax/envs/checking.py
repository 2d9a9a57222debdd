"""The complete check of an environment: its expert is played and timed, its contract is tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Split
from agentrm_jax.core.reply import parse_action
from agentrm_jax.envs.conformance import Finding, findings
from agentrm_jax.envs.measuring import Check, check

_MOST_TRIED = 3  # tasks on which the contract is tried


def checked(
    family: EnvironmentFamily,
    n: int,
    split: Split = "train",
    on_task: Callable[[], None] = lambda: None,
) -> tuple[Check, list[Finding]]:
    """Plays the expert of an environment and tries the contract.

    Args:
      family: The environment.
      n: Tasks that the expert plays.
      split: The split of the tasks.
      on_task: Called after each task.

    Returns:
      The measurements, and a finding for each rule of the contract; no findings if the expert
      could not be played. A broken rule is the reason of the measurements as well.
    """
    row = check(family, n, split, on_task)
    if row.expert is None:
        return row, []
    tried = list(findings(family, parse_action, min(n, _MOST_TRIED), split))
    broken = [f"{finding.name}: {finding.broken}" for finding in tried if finding.broken]
    if row.ok and broken:
        row = dataclasses.replace(row, ok=False, reason=broken[0])
    return row, tried
