"""Runs stages in a folder: all of them, or one; and the report on what is there."""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import yaml
from rich.console import Console

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluate.report import comparison_sentences, console_table, environment_table
from agentrm_jax.pipeline import evaluation
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_values import defaults, plain, upgraded
from agentrm_jax.pipeline.load_config import located
from agentrm_jax.pipeline.sizes import check_sizes
from agentrm_jax.pipeline.stages import STAGES, StageSpec, before, depends_on, stages_of
from agentrm_jax.pipeline.workspace import Run, Summary
from agentrm_jax.runtime.compilations import compilations
from agentrm_jax.runtime.json_files import naming, write_json_atomic, write_text_atomic
from agentrm_jax.runtime.processes import from_first, is_first
from agentrm_jax.runtime.run_claim import check_run_folder, lock_run_folder
from agentrm_jax.runtime.run_directory import RESOLVED, VERSIONS, Stage, completed, versions
from agentrm_jax.runtime.stage_files import check_stage_files
from agentrm_jax.runtime.trackers import check_installed


def run_all(config: RunConfig, directory: pathlib.Path) -> None:
    """Every stage in turn, then the report."""
    with _opened(config, directory) as run:
        specs = stages_of(config)
        from_first(run.check_overlap)
        from_first(run.check_given_models)
        from_first(lambda: check_sizes(config, run.mesh))
        for number, spec in enumerate(specs, start=1):
            _do(run, spec, f"[{number}/{len(specs)}] ")
        from_first(lambda: _report(run))


def run_stage(config: RunConfig, directory: pathlib.Path, name: str) -> None:
    """One stage; those before it must have ended.

    Raises:
      UserError: One has not, or the configuration does without this stage.
    """
    spec = next(stage for stage in STAGES if stage.name == name)
    depends_on(config, spec)
    with _opened(config, directory) as run:
        from_first(lambda: _check_before(run, spec))
        from_first(lambda: check_sizes(config, run.mesh))
        _do(run, spec, "")


def _check_before(run: Run, spec: StageSpec) -> None:
    """Refuses a stage whose input is not there."""
    for each in before(run.config, spec):
        folder = run.directory / each.folder
        if (ended := _completed(run.config, run.directory, each)) is not None:
            check_stage_files(folder, ended)
        else:
            raise UserError(
                f"{folder}: {each.name} has not ended yet; give `agentrm {each.name}` or "
                "`agentrm run` first"
            )


def report(config: RunConfig, directory: pathlib.Path) -> None:
    """Writes the report again, from what the stages left.

    Raises:
      UserError: Nothing was evaluated; the folder is left as it is.
    """
    folder = directory / next(spec.folder for spec in STAGES if spec.name == "evaluate")
    if not folder.is_dir():
        raise UserError(f"{folder}: nothing was evaluated yet; `agentrm evaluate` does it")
    with _opened(config, directory) as run:
        from_first(lambda: _report(run))


@contextmanager
def _opened(config: RunConfig, directory: pathlib.Path) -> Iterator[Run]:
    run = Run(config=config, directory=directory)
    with located(config), ExitStack() as held:
        from_first(lambda: _prepare(run, held))
        held.callback(run.close)
        yield run


def _prepare(run: Run, held: ExitStack) -> None:
    """Makes the run's folder and locks it."""
    config, directory = run.config, run.directory
    check_installed(config.trackers)
    check_run_folder(directory, [spec.folder for spec in STAGES])
    for spec in stages_of(config):  # a folder of another configuration is left as it is
        _completed(config, directory, spec)
    held.enter_context(lock_run_folder(directory))
    if not (directory / RESOLVED).exists():
        _record(run)


def _record(run: Run) -> None:
    """Writes the configuration and the versions with which a stage begins.

    A command that has nothing to do, such as a report, leaves them as they are. What a stage was
    made with stays in its own record.
    """
    resolved = yaml.safe_dump(plain(run.config), sort_keys=False)
    write_text_atomic(run.directory / RESOLVED, resolved)
    write_json_atomic(run.directory / VERSIONS, versions())


def _completed(config: RunConfig, directory: pathlib.Path, spec: StageSpec) -> Summary | None:
    """A stage's summary, if it has ended."""
    return completed(
        directory / spec.folder,
        depends_on(config, spec),
        defaults(config),
        functools.partial(upgraded, config=RunConfig),
    )


def _do(run: Run, spec: StageSpec, mark: str) -> None:
    """Does a stage unless its output is there."""
    folder = run.directory / spec.folder
    summary = from_first(lambda: _completed(run.config, run.directory, spec))
    if summary is not None:
        from_first(lambda: check_stage_files(folder, summary))
        _say(f"{mark}{spec.name}: done before ({_line(summary)})")
        return
    _say(f"{mark}{spec.name}")
    needed = depends_on(run.config, spec)
    from_first(lambda: _record(run))
    with naming(folder), Stage(spec.name, folder, needed, writes=is_first()) as stage:
        with compilations() as compiled:
            if spec.processes == "first":
                summary = from_first(lambda: spec.work(run, stage, folder))
            else:
                summary = spec.work(run, stage, folder)
        summary |= {"compilations": compiled.count, "compile_seconds": round(compiled.seconds, 2)}
        from_first(lambda: stage.finish(summary))
        seconds = stage.seconds
    if is_first():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the model is there
    _say(f"{' ' * len(mark)}{spec.name}: {seconds:.0f} s ({_line(summary)})")


def _say(line: str) -> None:
    if is_first():
        print(line, flush=True)


def _line(summary: Summary) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
        if not isinstance(value, dict)
    )


def _report(run: Run) -> None:
    folders = {spec.name: run.directory / spec.folder for spec in STAGES}
    rows, compared = evaluation.report(run, folders)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(console_table(rows))
    if (by_environment := environment_table(rows)) is not None:
        console.print(by_environment)
    for sentence in comparison_sentences(compared):
        print(sentence)
    print(f"report: {run.directory / 'report.html'}")
