"""Rollouts that several processes run and store together, within the budget of the run."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

from agentrm_jax.core.errors import BudgetSpent
from agentrm_jax.core.records import Task
from agentrm_jax.evaluation.rollout_files import stored_rollouts
from agentrm_jax.runtime.processes import from_all, gather, own_part
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.search.rollouts import Rollout


def shared_rollouts(
    name: str,
    path: pathlib.Path,
    episodes: Sequence[tuple[Task, int]],
    run: Callable[[Sequence[tuple[Task, int]]], Iterator[Rollout]],
    stage: Stage,
) -> list[Rollout]:
    """Runs the episodes that a file lacks, with a progress bar. All processes call it together.

    Args:
      name: Name of the progress bar.
      path: The file of all processes.
      episodes: (task, sample number) of this process, different ones in each process.
      run: Runs episodes and yields their rollouts as they end.
      stage: The stage at work.

    Returns:
      The rollouts of `episodes`, in their order.

    Raises:
      BudgetSpent: The budget is spent; what has ended is stored.
    """
    gather(path)
    found: list[Rollout] = []
    with stage.progress(name, len(episodes)) as bar, ended_together():

        def within_budget(missing: Sequence[tuple[Task, int]]) -> Iterator[Rollout]:
            for left, rollout in zip(reversed(range(len(missing))), run(missing), strict=False):
                yield rollout
                if left:  # the rollout is stored by now
                    stage.check_budget()

        found = stored_rollouts(path, episodes, within_budget, bar.advance, writes=own_part(path))
    gather(path)
    return found


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Ends a search in all processes when the share of the budget of one of them is spent.

    All processes use it together.

    Raises:
      BudgetSpent: At the end of the block.
    """
    spent = None
    try:
        yield
    except BudgetSpent as error:
        spent = error
    if any(from_all(spent is not None)):
        raise spent or BudgetSpent("budget.tokens", "another process")
