"""The environment families of a configuration, with its options."""

from __future__ import annotations

import pathlib

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.family_options import TakesOptions
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.config import EnvironmentConfig
from agentrm_jax.pipeline.load_config import load_config


def environment_family(environment: EnvironmentConfig) -> EnvironmentFamily:
    """Returns the family of an environment of a run, with the options of the configuration.

    Args:
      environment: The environment.

    Raises:
      UserError: It is not registered, takes no options, or refuses them.
    """
    family = load_family(environment.registered)
    if not environment.options:
        return family
    if not isinstance(family, TakesOptions):
        raise UserError(f"of {environment.name}: options must be left out", field="environments")
    try:
        return family.configured(environment.options)
    except UserError as error:
        raise UserError(f"of {environment.name}: {error}", field="environments") from error


def configured_family(name: str, path: pathlib.Path) -> EnvironmentFamily:
    """Returns the family of an environment with the options that a configuration file gives it.

    Args:
      name: The name of the environment, with its form: `agentgym@textcraft`.
      path: A YAML file.

    Raises:
      UserError: The file is refused, or does not name the environment.
    """
    for environment in load_config(path).environments:
        if environment.registered == name:
            return environment_family(environment)
    raise UserError(f"--config {path}: `environments` does not name {name}")
