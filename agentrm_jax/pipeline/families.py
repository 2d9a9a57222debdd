"""The environment families of a configuration, with its options."""

from __future__ import annotations

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily, TakesOptions
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.config import EnvironmentConfig


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
