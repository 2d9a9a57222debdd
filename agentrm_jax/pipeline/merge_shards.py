"""Joins and checks the results that processes with leases left in a run, without a model."""

from __future__ import annotations

import dataclasses
import pathlib
import urllib.parse
from collections.abc import Iterator

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.pipeline.run_status import bucket_of
from agentrm_jax.pipeline.shared_tasks import task_of
from agentrm_jax.runtime.lease_files import FileStore
from agentrm_jax.runtime.object_store import ObjectStore, fetch_lists
from agentrm_jax.runtime.process_groups import FOLDER
from agentrm_jax.runtime.run_claim import lock_run_folder
from agentrm_jax.runtime.run_directory import SECONDS_FILE
from agentrm_jax.runtime.run_paths import ROLLOUTS, TREES, RunPaths
from agentrm_jax.runtime.stage_files import stage_ended
from agentrm_jax.runtime.task_files import join_records, task_names

_STAGES = ("explore", "sample", "calibrate", "evaluate")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MergedFile:
    """A file of search results after its shards were joined and all of it was read again.

    Attributes:
      path: The file.
      tasks: The number of tasks; of a file without shards, those that it holds.
      complete: Tasks with a complete result.
      unfinished: Tasks that were begun; the next command resumes them.
      missing: Tasks of which there is nothing.
    """

    path: pathlib.Path
    tasks: int
    complete: int
    unfinished: tuple[str, ...]
    missing: tuple[str, ...]


def merge_shards(directory: pathlib.Path) -> list[MergedFile]:
    """Joins what the processes of a run left, and checks checksums, order and double records.

    Args:
      directory: The folder of the run, on which no process works.

    Returns:
      The files of trees and trajectories, with what is missing in each.

    Raises:
      UserError: It is no folder of a run, a process works on it, or a record is damaged, there
        twice, or in the file of another task; names file and line.
    """
    paths = RunPaths(directory)
    if not paths.config.is_file():
        raise UserError(f"{directory}: is no folder of a run (it has no {paths.config.name})")
    with lock_run_folder(directory):
        _fetch(paths)
        return [merged for stage in _STAGES for merged in _stage(paths.stage(stage))]


def _fetch(paths: RunPaths) -> None:
    """Reads the records in the bucket of a run into its folder."""
    if (bucket := bucket_of(paths)) is None:
        return
    for stage in _STAGES:
        folder = paths.stage(stage)
        if (folder / SECONDS_FILE).exists():  # begun on this host, and not ended
            fetch_lists(ObjectStore(bucket, stage, FileStore(folder / FOLDER)))


def _stage(folder: pathlib.Path) -> Iterator[MergedFile]:
    if not folder.is_dir():
        return
    ended, store = stage_ended(folder), FileStore(folder / FOLDER)
    lists: dict[pathlib.Path, list[str]] = {}
    for shards in sorted(path for path in store.directory.glob("*") if path.is_dir()):
        path = folder / urllib.parse.unquote(shards.name)
        if ".." in path.parts or not path.is_relative_to(folder):
            raise UserError(
                f"{printable(str(shards))}: is not of agentrm: its name leads out of the run; "
                "delete it"
            )
        names = task_names(shards)
        if path.name in (TREES, ROLLOUTS) and names is not None:
            join_records(path, store, shards.name, task_of, unfinished=True)
            lists[path] = names
    for path in sorted({*lists, *folder.rglob(TREES), *folder.rglob(ROLLOUTS)}):
        if FOLDER not in path.parts:
            yield _checked(path, lists.get(path), ended)


def _checked(path: pathlib.Path, names: list[str] | None, ended: bool) -> MergedFile:
    """Reads a file: damage and double records are errors of its reader."""
    if path.name == TREES:
        trees = TreeStore.read(path.parent, finished=ended)
        held = {task_id: tree.finished for task_id, tree in trees.items()}
    else:
        held = {r.trajectory.task.task_id: True for r in read_rollouts(path, finished=ended)}
    return MergedFile(
        path=path,
        tasks=len(held if names is None else names),
        complete=sum(held.values()),
        unfinished=tuple(task for task, finished in held.items() if not finished),
        missing=tuple(task for task in names or () if task not in held),
    )
