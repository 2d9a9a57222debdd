"""Tasks that several processes share: records they leave, and leftovers that are joined again."""

from __future__ import annotations

import contextlib
import pathlib
import urllib.parse
from collections.abc import Iterator
from typing import Any

from agentrm_jax.core.errors import BudgetSpent, UserError
from agentrm_jax.runtime.json_lines import move_records
from agentrm_jax.runtime.lease_files import FileStore, LeasesEnded
from agentrm_jax.runtime.process_groups import FOLDER, list_name
from agentrm_jax.runtime.processes import from_all, from_first
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.task_files import Joined, SharedTasks, join_records


def task_of(record: Any) -> str:
    """Returns the task of a record of a tree or of a rollout.

    Raises:
      UserError: It is neither.
    """
    try:
        if "trajectory" in record:
            return str(record["trajectory"]["task"]["task_id"])
        return str(record["task"]["task_id"] if "task" in record else record["task_id"])
    except (KeyError, TypeError):
        raise UserError("a record of a search names no task; delete its file") from None


def list_of(path: pathlib.Path, folder: pathlib.Path) -> str:
    """Returns the name of the list of tasks whose results are joined into a file.

    Args:
      path: The file.
      folder: The folder of the stage.
    """
    return path.relative_to(folder).as_posix()


def join_leftovers(path: pathlib.Path, folder: pathlib.Path, stage: Stage) -> None:
    """Joins what processes of earlier commands left, so that one that works alone resumes from it.

    Args:
      path: The file of all tasks.
      folder: The folder of the stage.
      stage: The stage at work.
    """

    def parts() -> list[pathlib.Path]:  # of earlier versions
        return list(path.parent.glob(f"{path.stem}.part*{path.suffix}"))

    if not stage.group.leased:
        from_first(lambda: move_records(parts(), path))
    elif found := parts():
        stage.group.once(f"parts of {list_of(path, folder)}", lambda: move_records(found, path))
    if not stage.group.shared and (folder / FOLDER).is_dir():
        with contextlib.suppress(LeasesEnded):
            join_records(
                path,
                FileStore(folder / FOLDER),
                list_name(list_of(path, folder)),
                task_of,
                unfinished=True,
            )


def joined(path: pathlib.Path, tasks: SharedTasks, stage: Stage) -> None:
    """Joins the records of all tasks, once.

    Args:
      path: The file of all tasks.
      tasks: The tasks, which are complete.
      stage: The stage at work.

    Raises:
      UserError: A record is damaged, or tasks are missing.
    """

    def join() -> None:
        found: Joined = join_records(path, tasks.collect(), tasks.name, task_of)
        if found.missing:
            raise UserError(
                f"{path}: {len(found.missing)} of {found.tasks} tasks have no record, the first "
                f"is {found.missing[0]}; run the command again"
            )

    stage.group.once(f"join {urllib.parse.unquote(tasks.name)}", join)


@contextlib.contextmanager
def shared(tasks: SharedTasks, stage: Stage) -> Iterator[None]:
    """Gives back what this process has taken and not recorded; ends joined processes together.

    Raises:
      BudgetSpent: At the end of the block, if a process that joined has spent its share.
    """
    spent = None
    try:
        try:
            yield
        finally:
            with contextlib.suppress(LeasesEnded):
                tasks.give_back()
    except BudgetSpent as error:
        spent = error
        if stage.group.leased:
            raise
    if not stage.group.leased and any(from_all(spent is not None)):
        raise spent or BudgetSpent("budget.tokens", "another process")
