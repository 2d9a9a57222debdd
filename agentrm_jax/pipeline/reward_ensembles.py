"""The kind `ensemble`: several reward models of a run as one."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.pipeline.acting import ActingPolicy
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.reward_kinds import RewardKind
from agentrm_jax.pipeline.reward_names import RewardTraits, used_rewards
from agentrm_jax.pipeline.sample import sampled_trajectories
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.reward.ensemble import EnsembleScorer, EnsembleSettings, moments_of
from agentrm_jax.runtime.json_files import read_record, write_json_atomic
from agentrm_jax.runtime.processes import is_first
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.run_directory import STAGE_FILE

MOST_TRAJECTORIES = 256
"""Training trajectories on which the scale of a member is measured."""
_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble(EnsembleSettings, RewardKind):
    """Several reward models as one: their mean, lowered by their disagreement.

    Attributes:
      of: Names of its members, as in `rewards`.
    """

    of: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.of) < 2 or len(set(self.of)) < len(self.of):
            raise UserError("must name at least two reward models, each once", field="of")
        if self.weights and len(self.weights) != len(self.of):
            expected = f"{len(self.of)} numbers, one for each name in of"
            raise UserError(field="weights", value=list(self.weights), expected=expected)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of its members."""
        return self.of

    @property
    def traits(self) -> RewardTraits:
        return dataclasses.replace(super().traits, compares=self.scale == "rank")

    def check(self, config: RunConfig) -> None:
        if self.scale != "standard":
            return
        if not (config.trains_reward or config.trains_implicit):
            raise UserError(
                "must be rank or none, because this run has no training trajectories: it trains "
                "no reward model",
                field="scale",
            )
        for name in self.of:
            if config.reward_traits(name).compares:
                raise UserError(
                    f"must be rank or none, because {name} compares trajectories of one task",
                    field="scale",
                )

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer that shares the members with the other reward models of the run."""
        moments = [_moments(policy, name) for name in self.of] if self.scale == "standard" else []
        return EnsembleScorer([policy.scorer(name) for name in self.of], self, moments)


def _moments(policy: ActingPolicy, name: str) -> tuple[float, float]:
    """The scale of a member: measured once, and stored in the folder of the run."""
    workspace = policy.workspace
    path = workspace.paths.reward_scales
    stored = read_record(path) if path.exists() else {}
    made_from = _made_from(workspace, name)
    known = stored.get(name)
    if isinstance(known, Mapping) and known.get("made_from") == made_from:
        return float(known["mean"]), float(known["deviation"])
    trajectories, scorer, scores = _training_trajectories(workspace), policy.scorer(name), []
    with progress(f"scale of {name}", len(trajectories), shown=is_first()) as bar:
        for first in range(0, len(trajectories), _BATCH):
            batch = trajectories[first : first + _BATCH]
            groups = [list(own) for _, own in itertools.groupby(batch, key=_task_id)]
            scores += [score for own in scores_of(scorer, groups) for score in own]
            bar.advance(len(batch))
    mean, deviation = moments_of(scores, name)
    if is_first():
        measured = {"mean": mean, "deviation": deviation, "trajectories": len(trajectories)}
        write_json_atomic(path, {**stored, name: {**measured, "made_from": made_from}})
    return mean, deviation


def _made_from(workspace: Workspace, name: str) -> str:
    """A checksum of the options of a member, and of the records of the stages that were run."""
    config, digest = workspace.config, hashlib.sha256()
    options = plain(used_rewards([name], config.reward_options))
    digest.update(json.dumps([options, config.reward_model], sort_keys=True).encode())
    for stage, folder in workspace.paths.stages.items():
        record = folder / STAGE_FILE
        if stage not in ("calibrate", "evaluate") and record.exists():
            digest.update(record.read_bytes())
    return digest.hexdigest()


def _training_trajectories(workspace: Workspace) -> list[Trajectory]:
    """Whole trajectories of training tasks, evenly from all that the run has, task by task."""
    if workspace.config.samples:
        found = [each for group in sampled_trajectories(workspace.paths) for each in group]
    elif workspace.config.learns_from_experts and not workspace.config.explores:
        found = sorted(open_trajectories(workspace.paths.experts), key=_task_id)
    else:
        found = sorted(read_trajectories(workspace.paths.trees), key=_task_id)
    return found[:: -(-len(found) // MOST_TRAJECTORIES)]


def _task_id(trajectory: Trajectory) -> str:
    return trajectory.task.task_id
