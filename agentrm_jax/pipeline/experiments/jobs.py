"""The stages of an experiment, each once, however many runs need it.

A stage is named after the part of the configuration that decides its output (`depends_on`), so that
runs that differ only in later stages share it. Its folder is a run of its own in which the stages
before it are links:

    OUTPUT/stages/sft-0123456789ab/{experts -> ../experts-.../experts, sft}
    OUTPUT/EXPERIMENT-SIZE/runs/NAME/{experts, sft, trees, ...}   links to what a run is made of

All experiments of one OUTPUT share its stages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.experiments.load import Entry, Experiment, merged, references, replaced
from agentrm_jax.pipeline.load_config import load_layers
from agentrm_jax.pipeline.stages import StageSpec, before, depends_on, stages_of
from agentrm_jax.runtime.run_directory import SECONDS_FILE, STAGE_FILE
from agentrm_jax.runtime.run_paths import MODEL

STAGES, RUNS = "stages", "runs"
_DIGITS = 12
_ADDED = {
    "explore.search.num_rollouts": 1, "experts.mistakes": 0.0, "train_rm.manipulated": 0.0,
}  # fmt: skip
"""Keys that folders of earlier versions lack. At these defaults a stage keeps its name."""
_MODELS = {
    "policy": ("sft", "policy"),
    "reward": ("train-rm", "reward_model"),
    "implicit": ("train-implicit", None),
}
"""From what a reference names to the stage that trains it and the key of a given one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A stage of one or more runs.

    Attributes:
      spec: The stage.
      config: The configuration of the first run that needs it.
      name: `STAGE-HASH`.
      root: The folder `OUTPUT/stages`.
      inputs: The names of the stages before it, by the name of the stage.
      needs: The names of all stages that have to end before it: its inputs, and those that train
        the models that its configuration refers to.
      runs: The folders of the runs and models that need it.
    """

    spec: StageSpec
    config: RunConfig
    name: str
    root: pathlib.Path
    inputs: Mapping[str, str]
    needs: tuple[str, ...]
    runs: list[str] = dataclasses.field(default_factory=list)

    @property
    def directory(self) -> pathlib.Path:
        """The folder of the run that holds its output."""
        return self.root / self.name

    @property
    def folder(self) -> pathlib.Path:
        """The folder of its output."""
        return self.directory / self.spec.folder

    @property
    def state(self) -> str:
        """Whether it is `done`, `begun` or `missing`."""
        if (self.folder / STAGE_FILE).exists():
            return "done"
        return "begun" if (self.folder / SECONDS_FILE).exists() else "missing"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """A run with the stages that it is made of.

    Attributes:
      entry: The run.
      config: Its configuration.
      jobs: The names of its stages, by the name of the stage.
    """

    entry: Entry
    config: RunConfig
    jobs: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work of an experiment.

    Attributes:
      output: The folder of the experiment, `OUTPUT/EXPERIMENT-SIZE`.
      root: The folder of stages, `OUTPUT/stages`.
      jobs: All stages by name; each after those that it needs.
      runs: The runs and models, by the names of their folders.
    """

    output: pathlib.Path
    root: pathlib.Path
    jobs: dict[str, Job]
    runs: dict[str, PlannedRun]

    @property
    def evaluated(self) -> list[PlannedRun]:
        """The runs, without the models."""
        return [run for run in self.runs.values() if run.entry.evaluated]

    def directory(self, run: PlannedRun) -> pathlib.Path:
        """Returns the folder of a run."""
        return self.output / RUNS / run.entry.folder


def plan(experiment: Experiment, output: pathlib.Path) -> Plan:
    """Returns the stages of an experiment, also the stages that its `trees` tables need.

    Args:
      experiment: The experiment.
      output: The folder of experiments.

    Raises:
      UserError: A configuration is wrong, or a reference names no model.
    """
    planner = _Planner(experiment, output.resolve())
    for entry in experiment.entries:
        if entry.evaluated:
            planner.add(entry, "evaluate")
    for number, table in enumerate(experiment.config.tables):
        if table.over not in ("", "n") and not _doubles(experiment, table.over):
            raise UserError(
                field=f"tables.{number}.over",
                value=table.over,
                expected="n, or an axis of grid whose values are numbers above 0",
            )
        if table.trees:
            for seed in dict.fromkeys(entry.seed for entry in experiment.entries):
                try:
                    planner.add(experiment.entry(table.trees, seed, {}), "explore")
                except UserError as error:
                    raise UserError(str(error), field=f"tables.{number}.trees") from None
    own = output / f"{experiment.name}-{experiment.size}"
    folders = [entry.folder for entry in experiment.entries]
    runs = {name: planner.runs[name] for name in folders if name in planner.runs}
    return Plan(output=own, root=planner.root, jobs=planner.jobs, runs=runs)


def _doubles(experiment: Experiment, axis: str) -> bool:
    """Returns whether each run has a number above 0 on an axis of the grid."""
    try:
        return all(float(e.axes[axis]) > 0 for e in experiment.entries if e.evaluated)
    except (KeyError, ValueError):
        return False


class _Planner:
    """Resolves references and names stages."""

    def __init__(self, experiment: Experiment, output: pathlib.Path) -> None:
        self._experiment, self.root = experiment, output / STAGES
        self._open: list[str] = []
        self._configs: dict[str, RunConfig] = {}
        self._trained: dict[str, tuple[Entry, str]] = {}  # from a model's folder to what trains it
        self.jobs: dict[str, Job] = {}
        self.runs: dict[str, PlannedRun] = {}

    def add(self, entry: Entry, stage: str) -> str:
        """Adds a stage of a run with all stages that it needs; returns its name."""
        config = self._config(entry)
        specs = {spec.name: spec for spec in stages_of(config)}
        if stage not in specs:
            raise UserError(f"names {entry.name}, which has no stage {stage}")
        inputs: dict[str, str] = {}
        for spec in (*before(config, specs[stage]), specs[stage]):
            needed = depends_on(config, spec)
            name = _name(spec, needed, self.root)
            text = json.dumps(needed)
            models = [
                self.add(*self._trained[path]) for path in self._trained if json.dumps(path) in text
            ]
            own = {each.name: inputs[each.name] for each in before(config, spec)}
            needs = tuple(dict.fromkeys((*own.values(), *models)))
            job = Job(spec=spec, config=config, name=name, root=self.root, inputs=own, needs=needs)
            job = self.jobs.setdefault(name, job)
            if entry.folder not in job.runs:
                job.runs.append(entry.folder)
            inputs[spec.name] = name
        known = self.runs.get(entry.folder)
        self.runs[entry.folder] = PlannedRun(
            entry=entry, config=config, jobs={**(known.jobs if known else {}), **inputs}
        )
        return inputs[stage]

    def _config(self, entry: Entry) -> RunConfig:
        """The configuration of a run, with folders in place of its references."""
        if entry.folder in self._open:
            raise UserError(f"refers to itself ({' -> '.join([*self._open, entry.folder])})")
        if entry.folder not in self._configs:
            self._open.append(entry.folder)
            layer = merged(entry.layers)
            paths = {}
            for name, what, at in references(layer):
                reference = f"${{{name}.{what}}}"
                try:
                    other = self._experiment.entry(name, entry.seed, entry.axes)
                    paths[reference] = self._model(other, what)
                except UserError as error:
                    raise UserError(f"{at.where}: {reference} {error}") from None
            self._configs[entry.folder] = load_layers(RunConfig, [replaced(layer, paths)])
            self._open.pop()
        return self._configs[entry.folder]

    def _model(self, entry: Entry, what: str) -> str:
        """The folder of a model of another run."""
        if what not in _MODELS:
            raise UserError(f"must end with one of {', '.join(_MODELS)}")
        stage, key = _MODELS[what]
        config = self._config(entry)
        spec = next((spec for spec in stages_of(config) if spec.name == stage), None)
        if spec is not None:
            name = _name(spec, depends_on(config, spec), self.root)
            path = str(self.root / name / spec.folder / MODEL)
            self._trained[path] = (entry, stage)
            return path
        given = None if key is None else getattr(config, key)
        if given is None:
            raise UserError(f"names {entry.name}, which has no stage {stage}")
        return given


def _name(spec: StageSpec, needed: Mapping[str, Any], root: pathlib.Path) -> str:
    """The name of a stage: a hash of what it depends on, whatever the folder of the experiment."""
    text = json.dumps(_early(needed), sort_keys=True).replace(
        json.dumps(str(root))[1:-1] + os.sep, ""
    )
    return f"{spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


def _early(value: Any, key: str = "") -> Any:
    """A part of a configuration without the keys of `_ADDED` that are left at their defaults."""
    if not isinstance(value, Mapping):
        return value
    prefix = f"{key}." if key else ""
    return {
        name: _early(inner, prefix + name)
        for name, inner in value.items()
        if (prefix + name) not in _ADDED or inner != _ADDED[prefix + name]
    }
