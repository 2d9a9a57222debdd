"""Names of the files and folders of a run; `run_directory` has the names in a stage's record."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

from agentrm_jax.runtime.run_directory import RESOLVED, VERSIONS

STAGE_FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "experts": "experts",
        "sft": "sft",
        "explore": "trees",
        "label": "states",
        "train-rm": "reward/explicit",
        "sample": "samples",
        "train-implicit": "reward/implicit",
        "calibrate": "calibrate",
        "evaluate": "eval",
    }
)
"""The folder of each stage, in the folder of a run."""

MODEL = "model"
"""The folder of the model that a training stage wrote, in the folder of that stage."""
DATASET = "dataset"
"""The folder of the data set that a stage wrote, in the folder of that stage."""
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts.jsonl"
TREES = "trees.jsonl"
EPISODES = "episodes.jsonl"
RESULTS = "results.json"
NODE_SCORES = "node_scores.json"
"""The scores of single states that `eval-rm` writes and `report --scores` shows in the trees."""

POLICY_MODEL = f"{STAGE_FOLDERS['sft']}/{MODEL}"
EXPLICIT_MODEL = f"{STAGE_FOLDERS['train-rm']}/{MODEL}"
IMPLICIT_MODEL = f"{STAGE_FOLDERS['train-implicit']}/{MODEL}"


@dataclasses.dataclass(frozen=True, slots=True)
class RunPaths:
    """Files and folders of one run.

    Attributes:
      run: The folder of the run.
    """

    run: pathlib.Path

    def stage(self, name: str) -> pathlib.Path:
        """Returns the folder of a stage."""
        return self.run / STAGE_FOLDERS[name]

    @property
    def stages(self) -> dict[str, pathlib.Path]:
        """The folder of each stage, by name."""
        return {name: self.stage(name) for name in STAGE_FOLDERS}

    @property
    def trees(self) -> pathlib.Path:
        return self.stage("explore")

    @property
    def experts(self) -> pathlib.Path:
        """The data set of expert trajectories."""
        return self.stage("experts") / DATASET

    @property
    def labels(self) -> pathlib.Path:
        """The data set of labelled states."""
        return self.stage("label") / DATASET

    @property
    def samples(self) -> pathlib.Path:
        """The rollouts that an implicit reward model is trained on."""
        return self.stage("sample") / ROLLOUTS

    @property
    def policy_model(self) -> pathlib.Path:
        return self.run / POLICY_MODEL

    @property
    def explicit_model(self) -> pathlib.Path:
        return self.run / EXPLICIT_MODEL

    @property
    def implicit_model(self) -> pathlib.Path:
        return self.run / IMPLICIT_MODEL

    @property
    def reward_scales(self) -> pathlib.Path:
        """The scales of the members of ensembles, measured on training trajectories."""
        return self.run / "reward_scales.json"

    def method(self, name: str) -> MethodPaths:
        """Returns the files of a test-time method."""
        return MethodPaths(self.stage("evaluate") / name)

    @property
    def thresholds(self) -> pathlib.Path:
        """The thresholds that were chosen for test-time methods."""
        return self.stage("calibrate") / "thresholds.json"

    def calibration(self, name: str, candidate: str) -> MethodPaths:
        """Returns the files of a test-time method with one candidate of its thresholds."""
        return MethodPaths(self.stage("calibrate") / name / candidate)

    @property
    def probe(self) -> pathlib.Path:
        """Whether the last observations of training trajectories give their outcome away."""
        return self.stage("evaluate") / "probe.json"

    @property
    def metrics(self) -> pathlib.Path:
        """The metrics of training, a row for each update that was logged."""
        return self.run / METRICS

    @property
    def config(self) -> pathlib.Path:
        """The configuration with all defaults filled in."""
        return self.run / RESOLVED

    @property
    def versions(self) -> pathlib.Path:
        return self.run / VERSIONS

    @property
    def servers(self) -> pathlib.Path:
        """The features of the servers that a run asks; absent without servers."""
        return self.run / "servers.json"

    @property
    def results(self) -> pathlib.Path:
        return self.run / RESULTS

    @property
    def report(self) -> pathlib.Path:
        """The report as JSON."""
        return self.run / "report.json"

    @property
    def report_page(self) -> pathlib.Path:
        """The report as one HTML page."""
        return self.run / "report.html"


@dataclasses.dataclass(frozen=True, slots=True)
class MethodPaths:
    """Files of one test-time method.

    Attributes:
      folder: The folder of the method.
    """

    folder: pathlib.Path

    @property
    def rollouts(self) -> pathlib.Path:
        """The trajectories that were run, stored as they end."""
        return self.folder / ROLLOUTS

    @property
    def episodes(self) -> pathlib.Path:
        """The episodes: one method on one task each."""
        return self.folder / EPISODES

    @property
    def results(self) -> pathlib.Path:
        return self.folder / RESULTS

    @property
    def scores(self) -> pathlib.Path:
        """The scores that reward models gave to the rollouts."""
        return self.folder / "scores.json"

    @property
    def by_n(self) -> pathlib.Path:
        """The mean return of best-of-n for every number of samples."""
        return self.folder / "by_n.json"

    @property
    def best_of_k(self) -> pathlib.Path:
        """The return of best-of-k on each task for every k up to the number of samples."""
        return self.folder / "best_of_k.json"
