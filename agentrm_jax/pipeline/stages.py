"""The table of the stages of a run.

Each stage reads what the stages before it wrote, and writes a folder of its own. An interrupted
stage resumes, and ends with the same output.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from agentrm_jax.clients.config import SPEED_KEYS
from agentrm_jax.core.addresses import is_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.calibrate import calibrate
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.evaluate import evaluate
from agentrm_jax.pipeline.experts import experts
from agentrm_jax.pipeline.explore import explore
from agentrm_jax.pipeline.label import label
from agentrm_jax.pipeline.sample import sample
from agentrm_jax.pipeline.sft import sft
from agentrm_jax.pipeline.train_implicit import train_implicit
from agentrm_jax.pipeline.train_reward import train_reward
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import STAGE_FOLDERS


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A stage.

    Attributes:
      name: Also the name of its command.
      after: The stages whose output it reads, or a function that gives them for a configuration.
      sections: Keys of the configuration that its output depends on, as well as those of the stages
        that it reads.
      wanted: Whether a run with this configuration needs it.
      work: Does the work of the stage; returns its summary.
      processes: Of several processes the `first` works and the others wait; or those that joined
        train `together`; or all `share` its tasks. With leases, one process does what they do not
        share.
    """

    name: str
    after: tuple[str, ...] | Callable[[RunConfig], tuple[str, ...]]
    sections: tuple[str, ...]
    wanted: Callable[[RunConfig], bool]
    work: Callable[[Workspace, Stage, pathlib.Path], Mapping[str, Any]]
    processes: Literal["first", "together", "share"]

    @property
    def folder(self) -> str:
        """The folder of the stage, in the folder of the run."""
        return STAGE_FOLDERS[self.name]

    def inputs(self, config: RunConfig) -> tuple[str, ...]:
        """Returns the stages whose output it reads.

        Args:
          config: The configuration of the run.
        """
        return self.after(config) if callable(self.after) else self.after


_LOGGING = ("metrics_every", "checkpoint_every", "keep")
_SHARED = ("environments", "seed")
_POLICY = (*_SHARED, "policy", "train_policy", "model", "sft", "engine.context", "dtype")
_ENGINE_BITS = ("engine.weights", "engine.kv")
_SCORING = (
    *_POLICY,
    *_ENGINE_BITS,
    "agent",
    "rewards",
    "reward_options",
    "reward_model",
    "state_parts",
    "judge",
)


def _pairs_from(config: RunConfig) -> tuple[str, ...]:
    """The stages that an implicit reward model learns from."""
    sources = {
        "experts": config.learns_from_experts,
        "sample": config.samples,
        "label": "siblings" in config.train_implicit.pairs,
    }
    return ("sft", *(name for name, used in sources.items() if used))


STAGES = (
    StageSpec(
        name="experts",
        after=(),
        sections=(*_SHARED, "experts"),
        wanted=lambda config: config.trains_policy or config.learns_from_experts,
        work=experts,
        processes="first",
    ),
    StageSpec(
        name="sft",
        after=("experts",),
        sections=_POLICY,
        wanted=lambda config: config.trains_policy,
        work=sft,
        processes="together",
    ),
    StageSpec(
        name="explore",
        after=("sft",),
        sections=(*_POLICY, *_ENGINE_BITS, "agent", "explore"),
        wanted=lambda config: config.explores,
        work=explore,
        processes="share",
    ),
    StageSpec(
        name="label",
        after=lambda config: () if config.trajectories else ("explore",),
        sections=("label", "trajectories", *_SHARED),
        wanted=lambda config: config.labels_states,
        work=label,
        processes="first",
    ),
    StageSpec(
        name="train-rm",
        after=("sft", "label"),
        sections=(*_POLICY, "train_rm", "reward_init", "state_parts"),
        wanted=lambda config: config.trains_reward,
        work=train_reward,
        processes="together",
    ),
    StageSpec(
        name="sample",
        after=("sft",),
        sections=(*_POLICY, *_ENGINE_BITS, "agent", "explore.num_tasks", "sample"),
        wanted=lambda config: config.samples,
        work=sample,
        processes="share",
    ),
    StageSpec(
        name="train-implicit",
        after=_pairs_from,
        sections=(*_POLICY, "train_implicit"),
        wanted=lambda config: config.trains_implicit,
        work=train_implicit,
        processes="together",
    ),
    StageSpec(
        name="calibrate",
        after=("sft", "train-rm", "train-implicit"),
        sections=(
            *_SCORING,
            "experts.num_tasks",
            "explore.num_tasks",
            "calibrate",
            "evaluate.methods",
            "evaluate.options",
            "evaluate.sampling",
            "evaluate.score_at",
        ),
        wanted=lambda config: config.evaluate.calibrates,
        work=calibrate,
        processes="share",
    ),
    StageSpec(
        name="evaluate",
        after=("sft", "train-rm", "train-implicit", "calibrate"),
        sections=(*_SCORING, "evaluate"),
        wanted=lambda config: True,
        work=evaluate,
        processes="share",
    ),
)

_ALWAYS_SPEED = (
    "agent.concurrency",
    "explore.search.concurrency",
    "sample.concurrency",
    "evaluate.concurrency",
    "evaluate.beam.concurrency",
    *(f"{stage}.fit.{key}" for stage in ("sft", "train_rm", "train_implicit") for key in _LOGGING),
)
"""Keys that decide speed and no results."""


def stages_of(config: RunConfig) -> list[StageSpec]:
    """The stages that a run goes through, in order."""
    return [stage for stage in STAGES if stage.wanted(config)]


def _why_not(config: RunConfig, name: str) -> str:
    """The key because of which a run has no such stage."""
    if name in ("experts", "sft"):
        if not config.train_policy:
            return "train_policy is false"
        return "agent has a policy of its own, and no kind in rewards is trained"
    if name == "calibrate":
        return "no method in evaluate.methods has a threshold without a value"
    if name in ("sample", "train-implicit"):
        if config.trains_implicit:
            return f"train_implicit.pairs is {config.train_implicit.pairs}, not trajectories"
        return "no kind in rewards is implicit"
    if config.reward_model is not None:
        return "reward_model names one that is trained; leave the key out to train one"
    if config.labels_states:
        return "trajectories takes the place of search trees"
    return "no kind in rewards learns from search trees"


def depends_on(config: RunConfig, stage: StageSpec) -> dict[str, Any]:
    """The part of the configuration that decides a stage's output, by dotted key.

    Raises:
      UserError: The configuration does without this stage.
    """
    if not stage.wanted(config):
        reason = _why_not(config, stage.name)
        raise UserError(f"{stage.name}: not a stage of this configuration: {reason}")
    values, speed = plain(config), _speed_keys(config)
    needed: dict[str, Any] = {}
    for each in (*before(config, stage), stage):
        for key in each.sections:
            value: Any = values
            for part in key.split("."):
                value = value[part]
            needed[key] = _without(value, key, speed)
    return needed


def before(config: RunConfig, stage: StageSpec) -> list[StageSpec]:
    """The stages on whose output a stage of this configuration rests, in order."""
    read = set(stage.inputs(config))
    for each in reversed(STAGES):
        if each.name in read:
            read |= set(each.inputs(config))
    return [each for each in stages_of(config) if each.name in read]


def _speed_keys(config: RunConfig) -> frozenset[str]:
    """The keys that decide speed and no results, with those of served models."""
    keys = [*_ALWAYS_SPEED, *(f"judge.server.{name}" for name in SPEED_KEYS)]
    keys += (f"agent.{name}" for name in config.agent.speed_keys)
    for name, kind in config.reward_options.items():
        keys += (f"reward_options.{name}.{each}" for each in getattr(kind, "speed_keys", ()))
    return frozenset(keys) | ({"judge.policy"} if is_url(config.judge.policy) else set())


def _without(value: Any, prefix: str, left_out: Collection[str]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: _without(inner, f"{prefix}.{key}", left_out)
        for key, inner in value.items()
        if f"{prefix}.{key}" not in left_out
    }
