"""A view of a run at work, from the files of its folder alone: what `agentrm watch` shows.

The run may work on another machine that shares the disk. Nothing here imports JAX, waits for the
run or writes a file.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any, Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.activity import ActivityRecord, read_activity
from agentrm_jax.runtime.json_lines import FollowedLines
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.run_directory import SECONDS_FILE, STAGE_FILE, read_stage_record
from agentrm_jax.runtime.run_paths import ROLLOUTS, TREES, RunPaths

SILENT_SECONDS = 120.0
"""A run on another machine that writes nothing for so long counts as ended."""

VISITS = ((1, 1), (2, 2), (3, 4), (5, 9), (10, None))
"""Ranges of visit counts, ends included."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageView:
    """A stage of a run.

    Attributes:
      name: Its name.
      state: `done`, `at work`, or `stopped`: begun, and no process works on it.
      seconds: Seconds of work.
      summary: Counts of a finished stage.
    """

    name: str
    state: Literal["done", "at work", "stopped"]
    seconds: float
    summary: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TreesView:
    """The trees of an exploration.

    Attributes:
      begun: Trees that were begun.
      finished: Trees whose search has ended.
      failed: Finished trees that an error ended.
      iterations: Finished iterations.
      mean_outcome: Mean return of the rollouts; None without any.
      states_by_visits: Number of states for each range of `VISITS`.
    """

    begun: int
    finished: int
    failed: int
    iterations: int
    mean_outcome: float | None
    states_by_visits: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RolloutsView:
    """The trajectories of `sample` or of a test-time method.

    Attributes:
      name: `sample` or the folder of the method.
      done: Trajectories that have ended.
      errors: Those whose environment failed.
      mean_outcome: Mean return, an error counted as 0.
    """

    name: str
    done: int
    errors: int
    mean_outcome: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """A run as its files show it.

    Attributes:
      stages: The stages that were begun, in order.
      activity: What the stage at work, or the stopped one, was doing last.
      trees: The trees; None before exploration.
      rollouts: The trajectories, by `sample` and by method.
      losses: By training stage the losses of its rows of metrics, in order.
    """

    stages: tuple[StageView, ...]
    activity: ActivityRecord | None
    trees: TreesView | None
    rollouts: tuple[RolloutsView, ...]
    losses: Mapping[str, list[float]]


class RunWatcher:
    """Looks at a run again and again; each look reads what is new.

    Args:
      directory: The folder of the run.

    Raises:
      UserError: It is no folder of a run.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._paths = RunPaths(directory)
        if not self._paths.config.is_file():
            raise UserError(
                f"{directory}: is no folder of a run (it has no {self._paths.config.name})"
            )
        self._trees = _Trees()
        self._rollouts: dict[str, _Rollouts] = {}
        self._files: dict[pathlib.Path, FollowedLines] = {}

    def look(self) -> RunView:
        """Returns the run as it is now.

        Raises:
          UserError: A record of a stage or a row of metrics is damaged.
        """
        stages, activity = [], None
        for name, folder in self._paths.stages.items():
            record = read_activity(folder)
            if (stage := _stage(name, folder, record)) is not None:
                stages.append(stage)
                if stage.state != "done":
                    activity = record
        for path in _parts(self._paths.trees / TREES):
            self._add(path, self._trees)
        folders = {"sample": self._paths.stage("sample")}
        evaluated = self._paths.stage("evaluate")
        if evaluated.is_dir():
            folders |= {path.name: path for path in sorted(evaluated.iterdir()) if path.is_dir()}
        for name, folder in folders.items():
            for path in _parts(folder / ROLLOUTS):
                self._add(path, self._rollouts.setdefault(name, _Rollouts()))
        losses: dict[str, list[float]] = {}
        for row in read_metrics(self._paths.metrics):
            if "loss" in row:
                losses.setdefault(row["stage"], []).append(row["loss"])
        return RunView(
            stages=tuple(stages),
            activity=activity,
            trees=self._trees.view(),
            rollouts=tuple(found.view(name) for name, found in self._rollouts.items()),
            losses=losses,
        )

    def _add(self, path: pathlib.Path, counts: _Trees | _Rollouts) -> None:
        """Counts the new records of a file; one of another form is left to the stage's reader."""
        for line in self._files.setdefault(path, FollowedLines(path)).new():
            with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError):
                counts.add(line)


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """A file, and those of several processes that are moved into it later."""
    return [path, *sorted(path.parent.glob(f"{path.stem}.part*{path.suffix}"))]


def _stage(name: str, folder: pathlib.Path, activity: ActivityRecord | None) -> StageView | None:
    """A stage, None if it was not begun."""
    for file in (STAGE_FILE, SECONDS_FILE):
        if (folder / file).exists():
            try:
                record = read_stage_record(folder / file)
            except FileNotFoundError:  # the stage ended between the two looks
                continue
            done = file == STAGE_FILE
            works = _is_new(folder / file) if activity is None else _works(activity)
            state = "done" if done else "at work" if works else "stopped"
            return StageView(
                name=name,
                state=state,
                seconds=record["seconds"],
                summary=record["summary"] if done else {},
            )
    return None


def _is_new(path: pathlib.Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < SILENT_SECONDS
    except OSError:
        return False


def _works(activity: ActivityRecord) -> bool:
    """Whether the process of an activity lives, as far as can be told from here."""
    if activity["host"] != socket.gethostname():
        return time.time() - activity["updated"] < SILENT_SECONDS
    try:
        os.kill(activity["pid"], 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process
        return True
    return True


class _Trees:
    """Counts of the records of a tree file."""

    def __init__(self) -> None:
        self._visits: dict[str, collections.Counter[int]] = {}
        self._finished: dict[str, str | None] = {}
        self._iterations: set[tuple[str, int]] = set()
        self._returns: list[float] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a record; one that was moved to another file comes again and counts once.

        Raises:
          LookupError, TypeError, ValueError, OverflowError: It has another form; it is not
            counted.
        """
        if record["kind"] == "begin":
            self._visits.setdefault(str(record["task"]["task_id"]), collections.Counter())
        elif record["kind"] == "finish":
            self._finished[str(record["task_id"])] = record["error"]
        elif (key := (str(record["task_id"]), int(record["iteration"]))) not in self._iterations:
            backups = [
                (float(backup["outcome"]), [int(node) for node in backup["path"]])
                for backup in (record, *record.get("further", ()))
            ]
            self._iterations.add(key)
            visits = self._visits.setdefault(key[0], collections.Counter())
            for outcome, path in backups:
                self._returns.append(outcome)
                visits.update(path)

    def view(self) -> TreesView | None:
        if not self._visits:
            return None
        counts = [count for visits in self._visits.values() for count in visits.values()]
        return TreesView(
            begun=len(self._visits),
            finished=len(self._finished),
            failed=sum(error is not None for error in self._finished.values()),
            iterations=len(self._iterations),
            mean_outcome=sum(self._returns) / len(self._returns) if self._returns else None,
            states_by_visits=tuple(
                sum(low <= count and (high is None or count <= high) for count in counts)
                for low, high in VISITS
            ),
        )


class _Rollouts:
    """Outcomes of the records of a rollout file."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, int], float | None] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a record.

        Raises:
          LookupError, TypeError, ValueError, OverflowError: It has another form; it is not
            counted.
        """
        trajectory = record["trajectory"]
        rewards = [float(step["transition"]["reward"]) for step in trajectory["steps"]]
        outcome = None if record["error"] else sum(rewards)
        key = (str(trajectory["task"]["task_id"]), int(record["sample"]))
        self._outcomes[key] = outcome

    def view(self, name: str) -> RolloutsView:
        outcomes = self._outcomes.values()
        return RolloutsView(
            name=name,
            done=len(outcomes),
            errors=sum(outcome is None for outcome in outcomes),
            mean_outcome=sum(outcome or 0.0 for outcome in outcomes) / max(1, len(outcomes)),
        )
