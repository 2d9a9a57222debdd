"""Runs an experiment: its stages, each once, then its tables."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping

import jax
import yaml
from rich.console import Console
from rich.table import Table

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.experiments.estimates import REPLY, Rates, estimate, rates
from agentrm_jax.pipeline.experiments.jobs import Job, Plan, PlannedRun, plan
from agentrm_jax.pipeline.experiments.load import Experiment
from agentrm_jax.pipeline.experiments.measures import measured
from agentrm_jax.pipeline.experiments.missing import missing
from agentrm_jax.pipeline.experiments.output import RECORD, print_tables, write_outputs
from agentrm_jax.runtime.json_files import read_json, write_json_atomic, write_text_atomic
from agentrm_jax.runtime.output_folders import check_output_file
from agentrm_jax.runtime.processes import (
    check_joined,
    ended_with_others,
    from_first,
    is_first,
    join,
)
from agentrm_jax.runtime.run_claim import FolderInUse
from agentrm_jax.runtime.run_paths import METRICS, STAGE_FOLDERS, RunPaths

_POLL_SECONDS = 5.0


def run_experiment(experiment: Experiment, output: pathlib.Path) -> None:
    """Runs what an experiment lacks, measures, and writes its tables.

    Args:
      experiment: The experiment.
      output: The folder of experiments. Stages that have ended there are used.

    Raises:
      UserError: The folder is another experiment's, something is missing, or a stage fails.
    """
    planned = plan(experiment, output)
    join(next(iter(planned.runs.values())).config.distributed)
    check_joined()
    with ended_with_others():
        _run(experiment, planned)


def _run(experiment: Experiment, planned: Plan) -> None:
    output = planned.output
    from_first(lambda: _require_all(planned))
    from_first(lambda: check_folder(experiment, output))
    for number, job in enumerate(planned.jobs.values(), start=1):
        _say(f"[{number}/{len(planned.jobs)}] {job.name} ({_users(job)})")
        from_first(lambda job=job: link_inputs(job, planned.jobs))
        _run_when_free(job)
    for run in planned.runs.values():
        from_first(lambda run=run: make_run_folder(planned, run))
    tables = [measured(experiment, planned, table) for table in experiment.config.tables]
    if is_first():
        record = write_outputs(experiment, planned, tables)
        print_tables(record)
        print(f"results: {output / RECORD}, experiment.md, experiment.html, runs/")


def _run_when_free(job: Job) -> None:
    """Runs a stage; waits while another experiment in the same folder works on it."""
    waits = False
    while True:
        try:
            runner.run_stage(job.config, job.directory, job.spec.name)
            return
        except FolderInUse:
            if jax.process_count() > 1:  # the others would not wait
                raise
            if not waits:
                _say(f"{job.name}: another process works on it; waiting for its end")
            waits = True
            time.sleep(_POLL_SECONDS)


def check_folder(experiment: Experiment, output: pathlib.Path) -> None:
    """Refuses a folder that holds another experiment, or other files.

    Raises:
      UserError: It does.
    """
    path = output / RECORD
    if path.exists():
        record = read_json(path)
        name = record.get("experiment") if isinstance(record, Mapping) else None
        if name != experiment.name:
            raise UserError(
                f"{output}: holds the experiment {name}, not {experiment.name}; choose another "
                "--output"
            )
    elif output.is_dir() and (held := sorted(p.name for p in output.iterdir())):
        raise UserError(
            f"{output}: holds files, but no experiment ({held[0]}); choose an empty folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    check_output_file(path)
    if not path.exists():
        write_json_atomic(path, {"experiment": experiment.name, "size": experiment.size})


def _require_all(planned: Plan) -> None:
    if lacking := missing(planned):
        lines = "; ".join(f"({number}) {line}" for number, line in enumerate(lacking, start=1))
        raise UserError(f"the experiment lacks {len(lacking)} things: {lines}")


def link_inputs(job: Job, jobs: Mapping[str, Job]) -> None:
    """Makes the folder of a stage with links to the stages before it."""
    for stage, name in job.inputs.items():
        _link(job.directory / STAGE_FOLDERS[stage], jobs[name].folder)


def make_run_folder(planned: Plan, run: PlannedRun) -> None:
    """Makes the folder of a run: links to its stages, its configuration and its metrics."""
    directory = planned.directory(run).resolve()
    jobs = [planned.jobs[name] for name in run.jobs.values()]
    for job in jobs:
        _link(directory / job.spec.folder, job.folder)
    paths = RunPaths(directory)
    write_text_atomic(paths.config, yaml.safe_dump(plain(run.config), sort_keys=False))
    metrics = [path for job in jobs if (path := job.directory / METRICS).exists()]
    write_text_atomic(paths.metrics, "".join(path.read_text() for path in metrics))


def _link(link: pathlib.Path, target: pathlib.Path) -> None:
    """Makes a relative link; one of an earlier plan is replaced."""
    link.parent.mkdir(parents=True, exist_ok=True)
    text = os.path.relpath(target, link.parent)
    if link.is_symlink():
        if os.readlink(link) == text:
            return
        link.unlink()
    link.symlink_to(text, target_is_directory=True)


def print_plan(experiment: Experiment, output: pathlib.Path) -> None:
    """Prints the stages of an experiment, their cost, and what is missing; runs nothing.

    Args:
      experiment: The experiment.
      output: The folder of experiments, in which stages may have ended.

    Raises:
      UserError: A configuration is wrong.
    """
    planned = plan(experiment, output)
    found = rates(planned.jobs.values())
    table = Table(title=f"{experiment.config.title} ({experiment.size})", title_justify="left")
    for name in ("stage", "for", "state", "tasks", "tokens", "seconds"):
        table.add_column(name, justify="left" if name in ("stage", "for", "state") else "right")
    tokens = seconds = 0.0
    for job in planned.jobs.values():
        cost = estimate(job, found)
        tokens += 0 if job.state == "done" else cost.tokens
        seconds += cost.seconds
        table.add_row(
            job.name,
            _users(job),
            job.state,
            f"{cost.tasks:,}",
            f"{cost.tokens:,.0f}",
            f"{cost.seconds:,.0f}",
        )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    print(_total(planned, tokens, seconds))
    print(_assumptions(found))
    for line in missing(planned):
        print(f"missing: {line}")


def _total(planned: Plan, tokens: float, seconds: float) -> str:
    runs, jobs = planned.evaluated, list(planned.jobs.values())
    unshared = sum(len(job.runs) for job in jobs)
    done = sum(job.state == "done" for job in jobs)
    return (
        f"{len(runs)} runs, {len(jobs)} stages ({unshared} without sharing), {done} done; left: "
        f"{tokens:,.0f} tokens, {seconds / 60:,.1f} minutes"
    )


def _assumptions(found: Rates) -> str:
    origin = (
        f"from {found.measured} stages that have ended"
        if found.measured
        else "assumed: two CPU cores, a model of 1M parameters"
    )
    return (
        f"estimate: {found.decoded:,.0f} tokens decoded and {found.trained:,.0f} trained on in a "
        f"second ({origin}); replies of {REPLY:g} x max_tokens, episodes of max_steps"
    )


def _users(job: Job) -> str:
    shown = ", ".join(job.runs[:3])
    return shown if len(job.runs) <= 3 else f"{shown} and {len(job.runs) - 3} more"


def _say(line: str) -> None:
    if is_first():
        print(line, flush=True)
