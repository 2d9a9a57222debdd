"""Rollouts that several processes run and store together."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence

from agentrm_jax.core.records import Task
from agentrm_jax.evaluation.rollout_files import stored_rollouts
from agentrm_jax.runtime.processes import gather, is_first, own_part
from agentrm_jax.runtime.progress import progress
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
    """
    gather(path)
    with progress(name, len(episodes), shown=is_first()) as bar:

        def on_rollout() -> None:
            bar.advance()
            stage.tick()

        found = stored_rollouts(path, episodes, run, on_rollout, writes=own_part(path))
    gather(path)
    return found
