"""Expert trajectories of one environment, without a run."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Split, Trajectory
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.envs.contract import listed_tasks
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.runtime.output_folders import check_output_folder
from agentrm_jax.runtime.progress import progress


def demonstrate(
    name: str,
    output: pathlib.Path,
    *,
    split: Split = "train",
    kinds: Sequence[str] | None = None,
    n: int = 100,
    seed: int = 0,
    workers: int = 0,
) -> tuple[list[Trajectory], int]:
    """Plays an environment's expert and writes the successful trajectories (TFDS).

    Args:
      name: The environment.
      output: The folder to write.
      split: The split of the tasks.
      kinds: Levels or domains; None for all.
      n: Tasks to solve.
      seed: Decides which tasks are drawn.
      workers: Environment processes; 0 steps the environments in this process.

    Returns:
      The trajectories, and the number of tasks that the expert tried.

    Raises:
      UserError: There is no such environment or task, the expert raises, no trajectory is left, or
        the folder cannot be written.
    """
    check_output_folder(output)
    tasks = listed_tasks(load_family(name), split, kinds=kinds, n=n, seed=seed)
    if not tasks:
        raise UserError(f"{name}: no task of split {split} and these kinds")
    pool = EnvPool(workers=workers)
    try:
        with progress("demonstrate", len(tasks)) as bar:
            trajectories = list(expert_trajectories(pool, tasks, bar.advance))
    finally:
        pool.close()
    write_trajectories(output, trajectories)
    return trajectories, len(tasks)
