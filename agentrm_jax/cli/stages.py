"""The stages of a run: each reads what the ones before it wrote, and writes a folder of its own.

Every stage goes on where it was when it was interrupted, and ends with the same output.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from agentrm_jax.cli.config import RunConfig
from agentrm_jax.cli.evaluation import evaluate
from agentrm_jax.cli.playing import experts, explore, label
from agentrm_jax.cli.run import Run, Summary
from agentrm_jax.cli.training import train_policy, train_reward
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.run_directory import Stage


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A stage.

    Attributes:
      name: Also the name of its command.
      folder: Its folder in the run's.
      sections: Keys of the configuration that its output depends on, besides those of the stages
        before it.
      wanted: Whether a run with this configuration needs it.
      work: Does it; returns a summary for people.
      processes: Of several processes `all` work together, or the `first` does and the others wait;
        `one`: a run of several cannot do it.
    """

    name: str
    folder: str
    sections: tuple[str, ...]
    wanted: Callable[[RunConfig], bool]
    work: Callable[[Run, Stage, pathlib.Path], Summary]
    processes: Literal["all", "first", "one"]


def _trains_policy(config: RunConfig) -> bool:
    return config.train_policy


def _trains_reward(config: RunConfig) -> bool:
    return config.reward_model is None


_LOGGING = ("metrics_every", "checkpoint_every", "keep")
_SHARED = ("environments", "seed")
_POLICY = (*_SHARED, "policy", "train_policy", "model", "sft", "engine.context", "dtype")

STAGES = (
    StageSpec(
        name="experts",
        folder="experts",
        sections=(*_SHARED, "experts"),
        wanted=_trains_policy,
        work=experts,
        processes="first",
    ),
    StageSpec(
        name="sft",
        folder="sft",
        sections=_POLICY,
        wanted=_trains_policy,
        work=train_policy,
        processes="all",
    ),
    StageSpec(
        name="explore",
        folder="trees",
        sections=(*_POLICY, "explore"),
        wanted=_trains_reward,
        work=explore,
        processes="one",
    ),
    StageSpec(
        name="label",
        folder="states",
        sections=("label",),
        wanted=_trains_reward,
        work=label,
        processes="first",
    ),
    StageSpec(
        name="train-rm",
        folder="reward/explicit",
        sections=("train_rm", "reward_init"),
        wanted=_trains_reward,
        work=train_reward,
        processes="all",
    ),
    StageSpec(
        name="evaluate",
        folder="eval",
        sections=(*_POLICY, "reward_model", "evaluate"),
        wanted=lambda config: True,
        work=evaluate,
        processes="one",
    ),
)

_SPEED = (
    "explore.search.num_slots",
    "evaluate.slots",
    "evaluate.beam.num_slots",
    *(f"{stage}.fit.{key}" for stage in ("sft", "train_rm") for key in _LOGGING),
)
"""Keys that decide speed and no results."""


def stages_of(config: RunConfig) -> list[StageSpec]:
    """The stages that a run goes through, in order."""
    return [stage for stage in STAGES if stage.wanted(config)]


def depends_on(config: RunConfig, stage: StageSpec) -> dict[str, Any]:
    """The part of the configuration that decides a stage's output, by dotted key."""
    values = dataclasses.asdict(config)
    needed: dict[str, Any] = {}
    for each in stages_of(config):
        for key in each.sections:
            value: Any = values
            for part in key.split("."):
                value = value[part]
            needed[key] = _without(value, key)
        if each is stage:
            return needed
    raise UserError(f"{stage.name}: not a stage of this configuration (see policy, reward_model)")


def _without(value: Any, prefix: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: _without(inner, f"{prefix}.{key}")
        for key, inner in value.items()
        if f"{prefix}.{key}" not in _SPEED
    }
