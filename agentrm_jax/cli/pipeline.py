"""Runs stages in a folder: all of them, or one; and the report on what is there."""

from __future__ import annotations

import dataclasses
import fcntl
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from rich.console import Console

from agentrm_jax.cli import evaluation
from agentrm_jax.cli.config import RunConfig
from agentrm_jax.cli.run import Run, Summary
from agentrm_jax.cli.stages import STAGES, StageSpec, before, depends_on, stages_of
from agentrm_jax.core.compilations import compilations
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.run_directory import (
    Stage,
    completed,
    versions,
    write_json_atomic,
    write_text_atomic,
)
from agentrm_jax.evaluate.report import comparison_sentences, console_table


def run_all(config: RunConfig, directory: pathlib.Path) -> None:
    """Every stage in turn, then the report."""
    with _opened(config, directory) as run:
        specs = stages_of(config)
        run.check_overlap()
        for number, spec in enumerate(specs, start=1):
            _do(run, spec, f"[{number}/{len(specs)}] ")
        _report(run)


def run_stage(config: RunConfig, directory: pathlib.Path, name: str) -> None:
    """One stage; those before it must have ended.

    Raises:
      UserError: One has not, or the configuration does without this stage.
    """
    spec = next(stage for stage in STAGES if stage.name == name)
    depends_on(config, spec)
    with _opened(config, directory) as run:
        for each in before(config, spec):
            if completed(directory / each.folder, depends_on(config, each)) is None:
                raise UserError(
                    f"{directory / each.folder}: {each.name} has not ended yet; give "
                    f"`agentrm {each.name}` or `agentrm run` first"
                )
        _do(run, spec, "")


def report(config: RunConfig, directory: pathlib.Path) -> None:
    """The report anew, from what the stages left."""
    with _opened(config, directory) as run:
        _report(run)


@contextmanager
def _opened(config: RunConfig, directory: pathlib.Path) -> Iterator[Run]:
    run = Run(config=config, directory=directory)
    for spec in stages_of(config):  # a folder of another configuration is left as it is
        completed(directory / spec.folder, depends_on(config, spec))
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{directory}: another process works in this folder") from None
    resolved = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    write_text_atomic(directory / "config.resolved.yaml", resolved)
    write_json_atomic(directory / "versions.json", versions())
    try:
        yield run
    finally:
        run.close()
        lock.close()


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _do(run: Run, spec: StageSpec, mark: str) -> None:
    """Does a stage unless its output is there."""
    folder, needed = run.directory / spec.folder, depends_on(run.config, spec)
    summary = completed(folder, needed)
    if summary is not None:
        print(f"{mark}{spec.name}: done before ({_line(summary)})", flush=True)
        return
    print(f"{mark}{spec.name}", flush=True)
    with Stage(spec.name, folder, needed) as stage:
        with compilations() as compiled:
            summary = spec.work(run, stage, folder)
        summary |= {"compilations": compiled.count, "compile_seconds": round(compiled.seconds, 2)}
        stage.finish(summary)
        seconds = stage.seconds
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the model is there
    print(f"{' ' * len(mark)}{spec.name}: {seconds:.0f} s ({_line(summary)})", flush=True)


def _line(summary: Summary) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
    )


def _report(run: Run) -> None:
    folders = {spec.name: run.directory / spec.folder for spec in STAGES}
    rows, compared = evaluation.report(run, folders)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(console_table(rows))
    for sentence in comparison_sentences(compared):
        print(sentence)
    print(f"report: {run.directory / 'report.html'}")
