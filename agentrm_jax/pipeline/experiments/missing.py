"""Everything that an experiment needs and that is not there, before anything runs."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from agentrm_jax.core.addresses import is_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.contract import missing_of
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.experiments.jobs import Plan
from agentrm_jax.pipeline.families import environment_family
from agentrm_jax.pipeline.models import is_model_directory
from agentrm_jax.runtime.trackers import check_installed


def missing(plan: Plan) -> list[str]:
    """Returns what the runs of an experiment lack, each once.

    Packages and data of environments, given models, imported trajectories and trackers. Models that
    the experiment trains are not missing.
    """
    found: dict[str, None] = {}
    for run in plan.runs.values():
        found |= dict.fromkeys(_missing(run.config, plan.root))
    return list(found)


def _missing(config: RunConfig, own: pathlib.Path) -> Iterator[str]:
    for environment in config.environments:
        try:
            if reason := missing_of(environment_family(environment)):
                yield f"environment {environment.registered}: {reason}"
        except UserError as error:
            yield str(error)
        if environment.prompt_dir is not None and not pathlib.Path(environment.prompt_dir).is_dir():
            yield f"environments: prompt_dir {environment.prompt_dir}: no such folder"
    given = {
        "policy": config.policy,
        "reward_model": config.reward_model,
        "reward_init": config.reward_init,
        "judge.policy": config.judge.policy,
    }
    for key, path in given.items():
        if path is None or is_url(path) or pathlib.Path(path).is_relative_to(own):
            continue
        if not is_model_directory(pathlib.Path(path)):
            yield f"{key}: {path}: no model here (set it with --{key}=FOLDER)"
    for folder in config.experts.imported:
        if not pathlib.Path(folder).is_dir():
            yield f"experts.imported: {folder}: no such folder"
    try:
        check_installed(config.trackers)
    except UserError as error:
        yield str(error)
