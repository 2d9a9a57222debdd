"""The models of a run: the policy that acts, and reward models, given or trained."""

from __future__ import annotations

import dataclasses
import pathlib

from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError, section
from agentrm_jax.model.heads import head_to_json
from agentrm_jax.model.hugging_face import Kind
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.models import Model
from agentrm_jax.runtime.run_paths import RunPaths


def policy_directory(config: RunConfig, paths: RunPaths) -> pathlib.Path:
    """Returns the folder of the policy that acts: the trained one, or the given one as it is."""
    if config.train_policy:
        return paths.policy_model
    if config.policy is None:
        raise UserError(
            "must name the model directory from which the reward model starts; the server stays in "
            "agent: {kind: server, url: ...}",
            field="policy",
        )
    return pathlib.Path(config.policy)


def reward_directory(config: RunConfig, paths: RunPaths) -> pathlib.Path:
    """Returns the folder of the explicit reward model, given or trained."""
    return (
        paths.explicit_model if config.reward_model is None else pathlib.Path(config.reward_model)
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunModels:
    """Loads the models of a run.

    Attributes:
      config: The configuration of the run.
      paths: Its files.
      mesh: The devices of all processes, for training.
      engine_mesh: The devices of this process, for engines.
    """

    config: RunConfig
    paths: RunPaths
    mesh: Mesh
    engine_mesh: Mesh

    @property
    def policy_directory(self) -> pathlib.Path:
        return policy_directory(self.config, self.paths)

    @property
    def reward_directory(self) -> pathlib.Path:
        return reward_directory(self.config, self.paths)

    def acting_policy(self) -> Model:
        """Loads the policy that acts, for an engine."""
        return models.load_policy(self.policy_directory, self.config.dtype, self.engine_mesh)

    def policy(self, dtype: str) -> Model:
        """Loads the same policy for training that starts from it."""
        return models.load_policy(self.policy_directory, dtype, self.mesh)

    def implicit(self) -> Model:
        """Loads the implicit reward model, for scoring."""
        directory = self.paths.implicit_model
        return models.load_policy(directory, self.config.dtype, self.engine_mesh)

    def reward_init(self, dtype: str) -> Model:
        """Loads the reward model of `reward_init`, from which reward training starts.

        Raises:
          UserError: It has another head than the one that is to be trained.
        """
        assert self.config.reward_init is not None
        found = models.load_reward(pathlib.Path(self.config.reward_init), dtype, self.mesh)
        if found.head != self.config.train_rm.head:
            raise UserError(
                f"must be that of reward_init, {head_to_json(found.head)}",
                field="train_rm.head",
            )
        return found

    def check_given(self) -> None:
        """Refuses given models that cannot read as much as the run gives them.

        The models of `reward_options` are checked as well.

        Raises:
          UserError: One is absent, or `engine.context` is too long for it.
        """
        given: tuple[tuple[Kind, str | None], ...] = (
            ("policy", self.config.policy), ("reward", self.config.reward_model),
        )  # fmt: skip
        for kind, directory in given:
            if directory is not None:
                shape = models.stored_shape(pathlib.Path(directory), kind)
                shape.check_length("engine.context", self.config.engine.context, directory)
        for name, reward in self.config.used_rewards:
            with section(f"reward_options.{name}"):
                reward.check_models(self)

    def check_model(self, field: str, directory: str, kind: Kind) -> None:
        """Refuses a model folder that a field names, as `check_given` does.

        Args:
          field: The field.
          directory: Its value.
          kind: `policy` or `reward`.

        Raises:
          UserError: There is no such model, or `engine.context` is too long for it.
        """
        try:
            shape = models.stored_shape(pathlib.Path(directory), kind)
        except UserError as error:
            raise UserError(f"names {error}", field=field) from error
        shape.check_length("engine.context", self.config.engine.context, directory)
