"""One stage of a run: skipped if it has ended, done by one process, or shared with others."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline import report as run_report
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_values import defaults, plain, upgraded
from agentrm_jax.pipeline.stages import StageSpec, depends_on
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.budget import Budget
from agentrm_jax.runtime.compilations import compilations
from agentrm_jax.runtime.joined_processes import JoinedProcesses
from agentrm_jax.runtime.json_files import naming, write_json_atomic, write_text_atomic
from agentrm_jax.runtime.lease_files import FileStore, LeasesEnded
from agentrm_jax.runtime.object_store import ObjectProcesses, ObjectStore
from agentrm_jax.runtime.process_groups import FOLDER, LeasedProcesses, OneProcess, ProcessGroup
from agentrm_jax.runtime.processes import from_first, is_first
from agentrm_jax.runtime.run_directory import (
    STAGE_FILE,
    Stage,
    completed,
    tokens_decoded,
    versions,
)
from agentrm_jax.runtime.run_paths import CHECKPOINTS
from agentrm_jax.runtime.stage_files import check_stage_files
from agentrm_jax.runtime.stored_stages import StoredStage

_MOST_TRIALS = 20
"""Times that a process joins a stage: it does so again if others have taken its work over."""


def stage_summary(workspace: Workspace, spec: StageSpec) -> dict[str, Any] | None:
    """Returns the summary of a stage, None if it has not ended.

    Raises:
      UserError: Its folder holds the output of another configuration.
    """
    config = workspace.config
    folder = workspace.paths.stage(spec.name)
    upgrade = functools.partial(upgraded, config=RunConfig)
    return completed(folder, depends_on(config, spec), defaults(config), upgrade)


def record_versions(workspace: Workspace) -> None:
    """Writes the configuration and the versions with which a stage begins.

    A command that has nothing to do, such as a report, leaves them as they are. The versions that a
    stage was made with stay in its own record.
    """
    resolved = yaml.safe_dump(plain(workspace.config), sort_keys=False)
    write_text_atomic(workspace.paths.config, resolved)
    write_json_atomic(workspace.paths.versions, versions())


def synchronize(workspace: Workspace, spec: StageSpec) -> None:
    """Fetches a stage that ended on another host, or publishes it; nothing without `leases.store`.

    Raises:
      UserError: The bucket holds the stage of another configuration, or cannot be used.
    """
    if (stored := _stored(workspace, spec)) is not None:
        stored.synchronize()


def _stored(workspace: Workspace, spec: StageSpec) -> StoredStage | None:
    if workspace.bucket is None:
        return None
    stored = StoredStage(workspace.bucket, spec.name, workspace.paths.stage(spec.name))
    stored.check_configuration(depends_on(workspace.config, spec))
    return stored


def run_or_join(workspace: Workspace, spec: StageSpec, mark: str) -> None:
    """Runs a stage unless its output is there; with leases, helps those that run it already.

    Args:
      workspace: The run.
      spec: The stage.
      mark: Printed before its name.
    """
    folder, announced = workspace.paths.stage(spec.name), False
    for trial in itertools.count(1):
        synchronize(workspace, spec)
        ended = from_first(lambda: stage_summary(workspace, spec))
        if ended is not None:
            from_first(lambda summary=ended: check_stage_files(folder, summary))
            _remove_leases(folder)
            print_line(
                f"{' ' * len(mark)}{spec.name}: ended ({_line(ended)})"
                if announced
                else f"{mark}{spec.name}: done before ({_line(ended)})"
            )
            return
        if not announced:
            print_line(f"{mark}{spec.name}")
        announced = True
        try:
            with _processes(workspace, spec, folder) as group:
                if isinstance(group, LeasedProcesses) and spec.processes != "share":
                    line = _run_once(workspace, spec, folder, group)
                else:
                    line = _run(workspace, spec, folder, group)
        except LeasesEnded:  # others have ended the stage, or taken this part of it over
            if not workspace.config.leases.enabled or trial == _MOST_TRIALS:
                raise
            continue
        except UserError:
            if workspace.config.leases.enabled and (folder / STAGE_FILE).exists():
                continue  # others have ended it, and files of the work on it are gone
            raise
        synchronize(workspace, spec)
        if workspace.bucket is not None and not (folder / STAGE_FILE).exists():
            raise UserError(
                f"leases.store {workspace.bucket.url}: {spec.name} has ended, but its files are "
                f"gone; delete {spec.name}/ there to run it again"
            )
        print_line(f"{' ' * len(mark)}{line}")
        return


def report_once(workspace: Workspace) -> None:
    """Writes the report, in one of the processes."""
    leases = workspace.config.leases
    if not leases.enabled or leases.store is not None:
        from_first(lambda: run_report.report(workspace))
        return
    with contextlib.suppress(LeasesEnded):
        group = LeasedProcesses(workspace.directory, leases)
        with contextlib.closing(group):
            group.once("report", lambda: run_report.report(workspace))
            group.remove()


class _Holder(OneProcess):
    """The process that does a stage alone while others wait for its end.

    Args:
      group: The processes of the run.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    def check(self) -> None:
        self._group.check()


@contextlib.contextmanager
def _processes(
    workspace: Workspace, spec: StageSpec, folder: pathlib.Path
) -> Iterator[OneProcess | JoinedProcesses | LeasedProcesses]:
    """The processes that work on a stage."""
    leases = workspace.config.leases
    if (stored := _stored(workspace, spec)) is not None and workspace.bucket is not None:
        store = ObjectStore(workspace.bucket, spec.name, FileStore(folder / FOLDER))
        group = ObjectProcesses(store, leases, stored.published)
    elif leases.enabled:
        group = LeasedProcesses(folder, leases, (folder / STAGE_FILE).exists)
    elif jax.process_count() > 1 and spec.processes == "share":
        group = JoinedProcesses(folder, leases)
    else:
        group = OneProcess()
    with contextlib.closing(group):
        yield group


def _run_once(
    workspace: Workspace, spec: StageSpec, folder: pathlib.Path, group: LeasedProcesses
) -> str:
    """Runs a stage in one process; the others wait for its end, and take it over if it dies."""
    holder = _Holder(group)

    def work() -> str:
        line = _run(workspace, spec, folder, holder)
        synchronize(workspace, spec)
        return line

    line = group.alone("stage", work)
    group.remove()
    return line


def _run(workspace: Workspace, spec: StageSpec, folder: pathlib.Path, group: ProcessGroup) -> str:
    """Runs a stage in all processes of a group; returns a line about it."""
    needed = depends_on(workspace.config, spec)
    from_first(lambda: record_versions(workspace))
    budget = _budget(workspace, spec.name)
    with (
        naming(folder),
        Stage(spec.name, folder, needed, writes=is_first(), budget=budget, group=group) as stage,
    ):
        if group.leased:
            _ = workspace.pool  # counted in another thread, which must not be the one to make it
            group.publish(lambda: {**stage.activity.counts(), "seconds": stage.seconds})
        with compilations() as compiled:
            if spec.processes == "first":
                made = from_first(lambda: spec.work(workspace, stage, folder))
            else:
                made = spec.work(workspace, stage, folder)
        summary = {
            **made,
            "compilations": compiled.count,
            "compile_seconds": round(compiled.seconds, 2),
        }
        if group.leased:
            group.once("finish", lambda: stage.finish(summary))
        else:
            from_first(lambda: stage.finish(summary))
        seconds = stage.seconds
    if is_first():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # the model is saved
    if group.shared:
        group.remove()
    elif not isinstance(group, _Holder):
        _remove_leases(folder)
    return f"{spec.name}: {seconds:.0f} s ({_line(summary)})"


def _remove_leases(folder: pathlib.Path) -> None:
    """Removes what processes with leases left that did not see the end of a stage."""
    if is_first() and (folder / FOLDER).is_dir():
        FileStore(folder / FOLDER).remove_all()


def _budget(workspace: Workspace, stage: str) -> Budget:
    """The budget that is left to a stage; the first process has the records of the others."""
    spent = from_first(lambda: tokens_decoded(workspace.paths.stages, but=stage))
    return Budget(config=workspace.config.budget, tokens_before=spent, began=workspace.began)


def print_line(line: str) -> None:
    """Prints a line in the first process."""
    if is_first():
        print(line, flush=True)


def _line(summary: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
        if not isinstance(value, dict)
    )
