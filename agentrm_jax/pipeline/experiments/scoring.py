"""Measures that score stored trajectories again; they need models and no environment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.manipulations import lengthened, manipulated
from agentrm_jax.evaluation.harness import by_task
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.evaluation.statistics import bootstrap
from agentrm_jax.pipeline.acting import ActingPolicy, open_policy
from agentrm_jax.pipeline.experiments.config import TableConfig
from agentrm_jax.pipeline.experiments.jobs import Plan, PlannedRun
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.progress import progress

Row = dict[str, Any]


def manipulations(planned: Plan, run: PlannedRun, table: TableConfig) -> list[Row]:
    """Returns the scores of stored trajectories before and after each manipulation.

    The error is that to the outcome: a manipulated trajectory that never happened has outcome 0, a
    forged success the outcome that it had.

    Args:
      planned: The experiment.
      run: The run, whose sampled trajectories are used.
      table: The table.
    """
    workspace = Workspace(config=run.config, directory=planned.directory(run))
    trajectories = _spread(_stored(workspace), table.num_trajectories)
    pairs = manipulated(trajectories, run.config.seed)
    policy, rows = open_policy(workspace), []
    for name, scorer in _scorers(policy, comparing=False):
        for kind, each in pairs.items():
            if each:
                rows.append(_manipulation_row(name, kind, each, scorer))
    return rows


def _manipulation_row(
    name: str, kind: str, pairs: Sequence[tuple[Trajectory, Trajectory]], scorer: Scorer
) -> Row:
    before, after = (
        np.array([score for [score] in scores_of(scorer, [[pair[side]] for pair in pairs])])
        for side in (0, 1)
    )
    finite = np.isfinite(before) & np.isfinite(after)
    outcomes = np.array([first.outcome for first, _ in pairs])[finite]
    before, after = before[finite], after[finite]
    reached = outcomes if kind == "forged_success" else np.zeros_like(outcomes)
    row: Row = {"reward_model": name, "manipulation": kind, "n": len(before)}
    if not len(before):
        return row
    change = bootstrap(after - before)
    return row | {
        "outcome": float(outcomes.mean()),
        "score_before": float(before.mean()),
        "score_after": float(after.mean()),
        "change": change.mean,
        "change_ci95": [change.low, change.high],
        "raised": float((after > before).mean()),
        "squared_error_before": float(((before - outcomes) ** 2).mean()),
        "squared_error_after": float(((after - reached) ** 2).mean()),
    }


def costs(planned: Plan, run: PlannedRun, table: TableConfig) -> list[Row]:
    """Returns the seconds and tokens of each reward model over the length of trajectories.

    Trajectories are cut or repeated to each length. Each is scored with empty caches; programs are
    compiled before on trajectories of another task.

    Args:
      planned: The experiment.
      run: The run, whose sampled trajectories are used.
      table: The table.

    Raises:
      UserError: The run has sampled fewer than two tasks.
    """
    workspace = Workspace(config=run.config, directory=planned.directory(run))
    tasks = [[t for t in group if t.steps] for group in _stored(workspace)]
    tasks = [group for group in tasks if group]
    if len(tasks) < 2:
        raise UserError("tables.cost needs trajectories of two tasks; raise evaluate.num_tasks")
    size = max(1, table.num_trajectories // max(map(len, tasks)))
    first, *rest = tasks
    rows: list[Row] = []
    names = list(run.config.rewards)
    with progress("cost", len(table.lengths) * len(names)) as bar:
        for length in table.lengths:
            # A scorer of its own for each length: prefixes that are in a cache would cost nothing.
            for name, scorer in _scorers(open_policy(workspace)):
                groups = [[lengthened(t, length) for t in group] for group in (first, *rest[:size])]
                scores_of(scorer, groups[:1])
                begin = time.perf_counter()
                scores_of(scorer, groups[1:])
                seconds = time.perf_counter() - begin
                count = sum(map(len, groups[1:]))
                tokens = sum(scorer.cost(group) for group in groups[1:])
                rows.append(
                    {
                        "reward_model": name,
                        "length": length,
                        "n": count,
                        "milliseconds": 1000 * seconds / count,
                        "tokens": tokens / count,
                    }
                )
                bar.advance()
    return rows


def _scorers(policy: ActingPolicy, *, comparing: bool = True) -> Iterator[tuple[str, Scorer]]:
    """The reward models of a run, each opened when it is needed."""
    config = policy.workspace.config
    for name in config.rewards:
        if comparing or not config.reward_traits(name).compares:
            yield name, policy.scorer(name)


def _stored(workspace: Workspace) -> list[list[Trajectory]]:
    """The trajectories of best-of-n that ended without an error, by task."""
    path = workspace.paths.method("best_of_n").rollouts
    rollouts = [r for r in read_rollouts(path, finished=True) if r.error is None]
    groups = by_task(sorted(rollouts, key=lambda r: (r.trajectory.task.task_id, r.sample)))
    return [[rollout.trajectory for rollout in group] for group in groups.values()]


def _spread(groups: Sequence[Sequence[Trajectory]], most: int) -> list[Trajectory]:
    """At most `most` trajectories, those of all tasks in turn."""
    longest = max(map(len, groups), default=0)
    turns = [group[i] for i in range(longest) for group in groups if i < len(group)]
    return turns[:most]
