"""`agentrm experts NAME`: expert trajectories of one environment, without a configuration."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.trajectories import write_trajectories
from agentrm_jax.envs.contract import listed_tasks
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import environment_names, load_family
from agentrm_jax.runtime.output_folders import check_output_folder
from agentrm_jax.runtime.progress import progress

_MOST_TASKS = 1_000_000  # as `experts.num_tasks` of a run
_SLOW = 10_000  # tasks whose listing takes more than some seconds


def main(arguments: Sequence[str]) -> int:
    """Writes the trajectories that succeed; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="agentrm experts",
        description="Asks an environment's expert to solve tasks and writes what succeeds (TFDS).",
        epilog="With a configuration file in place of NAME: the stage `experts` of a run.",
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(environment_names()))
    parser.add_argument("--split", default="train", choices=("train", "test", "paper"))
    parser.add_argument("--n", type=int, default=100, help="tasks to solve (default 100)")
    parser.add_argument("--kinds", default="", help="levels or domains, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="which tasks are drawn")
    parser.add_argument("--workers", type=int, default=0, help="environment processes")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write")
    given = parser.parse_args(arguments)
    for key, least in (("n", 1), ("seed", 0), ("workers", 0)):
        if getattr(given, key) < least:
            raise UserError(f"--{key}: must be at least {least} (got {getattr(given, key)})")
    if given.n > _MOST_TASKS:
        raise UserError(f"--n: must be at most {_MOST_TASKS} (got {given.n})")
    check_output_folder(given.output)
    family = load_family(given.name)
    kinds = given.kinds.split(",") if given.kinds else None
    if given.n > _SLOW:
        print(f"{given.name}: listing tasks; {given.n} take a while", file=sys.stderr)
    tasks = listed_tasks(family, given.split, kinds=kinds, n=given.n, seed=given.seed)
    if not tasks:
        raise UserError(f"{given.name}: no task of split {given.split} and these kinds")
    pool = EnvPool(workers=given.workers)
    try:
        with progress("experts", len(tasks)) as bar:
            found = list(expert_trajectories(pool, tasks, bar.advance))
    finally:
        pool.close()
    write_trajectories(given.output, found)
    steps = sum(len(t.steps) for t in found) / len(found)
    print(
        f"{given.output}: {len(found)} trajectories of {len(tasks)} tasks, {steps:.1f} steps each"
    )
    return 0
