"""Rollouts on disk. Each is stored when it ends, so that an interrupted evaluation resumes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, to_json
from agentrm_jax.core.text import printable
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.search.rollouts import Rollout


def read_rollouts(path: pathlib.Path, *, finished: bool = False) -> Iterator[Rollout]:
    """Yields the rollouts of a file that `stored_rollouts` wrote, in the order in which they ended.

    Args:
      path: The file.
      finished: Whether its writer has ended: a torn last line or an absent file is damage then.

    Raises:
      UserError: A line is damaged, no rollout, or one that was there before; names file and line.
    """
    seen: set[tuple[str, int]] = set()
    for number, value in enumerate(read_json_lines(path, finished), start=1):
        try:
            rollout = from_json(Rollout, value)
            key = (rollout.trajectory.task.task_id, rollout.sample)
            if key in seen:
                raise ValueError(f"sample {key[1]} of task {printable(key[0])} is there twice")
            if not -1e-6 <= rollout.trajectory.outcome <= 1 + 1e-6:
                raise ValueError(f"its return is {rollout.trajectory.outcome:.6g}, not in [0, 1]")
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not a rollout ({error}); restore the file, or delete it "
                "to make it again"
            ) from None
        seen.add(key)
        yield rollout


def stored_rollouts(
    path: pathlib.Path,
    episodes: Sequence[tuple[Task, int]],
    run: Callable[[Sequence[tuple[Task, int]]], Iterator[Rollout]],
    on_rollout: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """Runs the episodes that a file lacks, and stores each rollout as it ends.

    Args:
      path: The file with stored rollouts.
      episodes: (task, sample number) of each rollout that is wanted.
      run: Runs episodes and yields their rollouts, in any order.
      on_rollout: Called for each rollout, stored or new.

    Returns:
      The rollouts in the order of `episodes`.

    Raises:
      UserError: The file is damaged, or `run` yields a rollout too many or too few.
    """
    wanted = {(task.task_id, sample) for task, sample in episodes}
    found = {}
    for rollout in read_rollouts(path):
        if (key := (rollout.trajectory.task.task_id, rollout.sample)) in wanted:
            found[key] = rollout
            on_rollout()
    missing = [(task, sample) for task, sample in episodes if (task.task_id, sample) not in found]
    with JsonLines(path) as lines:
        for rollout in run_missing(path, missing, run):
            lines.append(rollout_to_json(rollout))
            found[rollout.trajectory.task.task_id, rollout.sample] = rollout
            on_rollout()
    return [found[task.task_id, sample] for task, sample in episodes]


def run_missing(
    path: pathlib.Path,
    missing: Sequence[tuple[Task, int]],
    run: Callable[[Sequence[tuple[Task, int]]], Iterator[Rollout]],
) -> Iterator[Rollout]:
    """Runs episodes and yields their rollouts as they end: each once.

    Args:
      path: The file that lacks them, for errors.
      missing: (task, sample number) of each; nothing runs if there are none.
      run: See `stored_rollouts`.

    Raises:
      UserError: `run` yields a rollout too many or too few.
    """
    left = {(task.task_id, sample) for task, sample in missing}
    wanted = frozenset(left)
    for rollout in run(missing) if missing else ():
        key = (rollout.trajectory.task.task_id, rollout.sample)
        if key not in wanted:
            raise UserError(f"{_place(path, key)}: the method answered it without being asked")
        if key not in left:
            raise UserError(f"{_place(path, key)}: the method answered it a second time")
        left.remove(key)
        yield rollout
    for task, sample in missing:
        if (key := (task.task_id, sample)) in left:
            raise UserError(f"{_place(path, key)}: the method gave no answer")


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Returns the JSON form of a rollout, without the nodes of a search if there are none."""
    fields = {f.name: getattr(rollout, f.name) for f in dataclasses.fields(rollout)}
    fields["trajectory"] = to_json(rollout.trajectory)
    nodes = [dataclasses.asdict(node) for node in fields.pop("search")]
    return {**fields, "search": nodes} if nodes else fields


def _place(path: pathlib.Path, key: tuple[str, int]) -> str:
    return f"{path.parent}: task {printable(key[0])}, sample {key[1]}"
