"""Runs the stages of a run, all or one, and its report."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline import report as run_report
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_values import defaults, upgraded
from agentrm_jax.pipeline.load_config import located
from agentrm_jax.pipeline.report_searches import Shown
from agentrm_jax.pipeline.run_stages import (
    print_line,
    record_versions,
    report_once,
    run_or_join,
    stage_summary,
    synchronize,
)
from agentrm_jax.pipeline.sizes import check_sizes
from agentrm_jax.pipeline.stages import STAGES, StageSpec, before, depends_on, stages_of
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.processes import from_first
from agentrm_jax.runtime.run_claim import check_run_folder, lock_run_folder
from agentrm_jax.runtime.run_directory import (
    STAGE_FILE,
    completed,
    read_stage_record,
)
from agentrm_jax.runtime.run_paths import STAGE_FOLDERS, RunPaths
from agentrm_jax.runtime.stage_files import check_stage_files
from agentrm_jax.runtime.trackers import check_installed


def run_all(config: RunConfig, directory: pathlib.Path) -> None:
    """Runs every stage in turn, then the report. Stages that have ended are skipped.

    Args:
      config: The configuration.
      directory: The folder of the run; made if it is absent.

    Raises:
      UserError: The folder is of another configuration, or a stage cannot be done.
    """
    with _opened(config, directory) as workspace:
        specs = stages_of(config)
        if config.trains_reward or config.trains_implicit:
            _ = workspace.models.policy_directory  # a missing one is found before anything runs
        from_first(workspace.tasks.check_overlap)
        from_first(workspace.models.check_given)
        from_first(lambda: check_sizes(config, workspace.mesh))
        for number, spec in enumerate(specs, start=1):
            run_or_join(workspace, spec, f"[{number}/{len(specs)}] ")
        report_once(workspace)


def run_stage(config: RunConfig, directory: pathlib.Path, name: str) -> None:
    """Runs one stage; the stages before it must have ended.

    Args:
      config: The configuration.
      directory: The folder of the run.
      name: The stage.

    Raises:
      UserError: One has not ended, or the configuration does not need this stage.
    """
    spec = next(stage for stage in STAGES if stage.name == name)
    depends_on(config, spec)
    with _opened(config, directory) as workspace:
        from_first(lambda: _check_before(workspace, spec))
        from_first(lambda: check_sizes(config, workspace.mesh))
        run_or_join(workspace, spec, "")


def run_or_logs(source: pathlib.Path | None) -> tuple[pathlib.Path | None, list[str]]:
    """Returns what `--from` names: the folder of a run, or overrides for a file of trajectories."""
    if source is None or source.is_dir() or source.suffix not in (".json", ".jsonl"):
        return source, []
    return None, [f"--trajectories=[{json.dumps(str(source))}]"]


def link_stages(config: RunConfig, directory: pathlib.Path, source: pathlib.Path) -> None:
    """Links the finished stages of another run that this configuration would make in the same way.

    They are symbolic links into the other run's folder, whose files are only read: labels with
    other targets, or another evaluation, need no new trees. Stages that are there already stay.

    Args:
      config: The configuration.
      directory: The folder of the run.
      source: The folder of the other run.

    Raises:
      UserError: It is no folder of a run, or none of its finished stages fits.
    """
    if not RunPaths(source).config.is_file():
        raise UserError(f"--from {source}: is no folder of a run")
    with _opened(config, directory) as workspace:
        from_first(lambda: _link_stages(workspace, source))


def _link_stages(workspace: Workspace, source: pathlib.Path) -> None:
    config, linked, differs = workspace.config, [], ""
    for spec in stages_of(config):
        folder, other = workspace.paths.stage(spec.name), RunPaths(source).stage(spec.name)
        if stage_summary(workspace, spec) is not None:
            linked.append(spec.name)
            continue
        try:
            upgrade = functools.partial(upgraded, config=RunConfig)
            ended = completed(other, depends_on(config, spec), defaults(config), upgrade)
        except UserError as error:
            differs = differs or str(error)
            continue
        if ended is None or folder.exists():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(os.path.relpath(other.resolve(), folder.parent.resolve()))
        linked.append(spec.name)
        print_line(f"{spec.name}: linked to {other}")
    if not linked:
        raise UserError(differs or f"--from {source}: none of its stages has ended")


def report(config: RunConfig, directory: pathlib.Path, shown: Shown | None = None) -> None:
    """Writes the report again, from what the stages left.

    Args:
      config: The configuration.
      directory: The folder of the run.
      shown: What the viewer of searches shows.

    Raises:
      UserError: Nothing was evaluated; the folder is left as it is.
    """
    folder = RunPaths(directory).stage("evaluate")
    if not folder.is_dir():
        raise UserError(f"{folder}: nothing was evaluated yet; `agentrm evaluate` does it")
    with _opened(config, directory) as workspace:
        from_first(lambda: run_report.report(workspace, shown))


def _check_before(workspace: Workspace, spec: StageSpec) -> None:
    """Refuses a stage whose input is missing."""
    for each in before(workspace.config, spec):
        folder = workspace.paths.stage(each.name)
        synchronize(workspace, each)
        if (ended := stage_summary(workspace, each)) is not None:
            check_stage_files(folder, ended)
        else:
            raise UserError(
                f"{folder}: {each.name} has not ended yet; give `agentrm {each.name}` or "
                "`agentrm run` first"
            )


@contextmanager
def _opened(config: RunConfig, directory: pathlib.Path) -> Iterator[Workspace]:
    workspace = Workspace(config=config, directory=directory)
    with located(config), ExitStack() as held:
        from_first(lambda: _prepare(workspace, held))
        held.callback(workspace.close)
        yield workspace


def _prepare(workspace: Workspace, held: ExitStack) -> None:
    """Makes and locks the folder of the run."""
    directory = workspace.directory
    check_installed(workspace.config.trackers)
    check_run_folder(directory, list(STAGE_FOLDERS.values()))
    _check_trajectories(workspace)
    for spec in stages_of(workspace.config):  # a folder of another configuration is left as it is
        stage_summary(workspace, spec)
    leases = workspace.config.leases
    if leases.store is not None and not leases.enabled:
        raise UserError("needs leases.enabled: true", field="leases.store")
    _ = workspace.bucket  # one that cannot be used is found before anything is written
    shared = leases.enabled and leases.store is None
    held.enter_context(lock_run_folder(directory, shared=shared))
    if not workspace.paths.config.exists():
        record_versions(workspace)


def _check_trajectories(workspace: Workspace) -> None:
    """Refuses labels of other trajectories, before the stages that only trees need differ."""
    folder, now = workspace.paths.stage("label"), list(workspace.config.trajectories)
    path = folder / STAGE_FILE
    if not workspace.config.labels_states or not path.exists():
        return
    before = read_stage_record(path)["depends_on"].get("trajectories", [])
    if before != now:
        raise UserError(
            f"{folder}: was made with trajectories = {json.dumps(before)}, but it is now "
            f"{json.dumps(now)}; give --from FILE again or write the key into CONFIG, choose "
            "another --output, or delete the folder to make it again"
        )
