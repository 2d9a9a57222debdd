"""The store of pairs: two trajectories of one task, the better one first."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrm_jax.core.records import Trajectory, to_json, trajectory_from_json
from agentrm_jax.data.dataset import Dataset, open_dataset, write_dataset

Pair = tuple[Trajectory, Trajectory]


def preference_pairs(groups: Iterable[Sequence[Trajectory]]) -> list[Pair]:
    """The best of each task's trajectories with its worst, the next best with the next worst, and
    so on while their outcomes differ; of equal outcomes the first counts as the better one.

    Args:
      groups: The trajectories of each task, for example `TreeRecord.finished_trajectories()`.
    """
    pairs = []
    for group in groups:
        ordered = sorted(group, key=lambda trajectory: -trajectory.outcome)
        for better, worse in zip(ordered, reversed(ordered), strict=True):
            if better.outcome <= worse.outcome:
                break
            pairs.append((better, worse))
    return pairs


def write_pairs(directory: pathlib.Path, pairs: Iterable[Pair]) -> int:
    """Writes them all, or nothing; gives their number."""
    return write_dataset(
        directory,
        "pairs",
        (
            (
                f"{chosen.task.task_id}/{number}",
                {"margin": chosen.outcome - rejected.outcome},
                {"chosen": to_json(chosen), "rejected": to_json(rejected)},
            )
            for number, (chosen, rejected) in enumerate(pairs)
        ),
    )


def open_pairs(directory: pathlib.Path, made_by: str) -> Dataset[Pair]:
    """What `write_pairs` wrote; an error names the command `made_by`."""
    return open_dataset(directory, made_by, _pair)


def _pair(value: Mapping[str, Any]) -> Pair:
    return trajectory_from_json(value["chosen"]), trajectory_from_json(value["rejected"])
