"""The policy of a language model in a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.records import Prompt
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.pipeline.model_folders import Prompts, find_model
from agentrm_jax.pipeline.models import load_policy


class ModelPolicy(Agent):
    """The policy of a language model in a folder. It is a `Policy` for all searches."""

    _prompts: Prompts
    _own_seed: int | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        prompts: Mapping[str, Prompt | None] | None = None,
        *,
        sampling: Sampling | None = None,
        engine: EngineConfig | None = None,
        dtype: str | None = None,
        seed: int | None = None,
    ) -> ModelPolicy:
        """Loads a policy.

        Args:
          path: Folder of a run, a model folder (`RUN/sft/model`) or a Hugging Face directory.
          prompts: Prompts by environment, for environments that the model was not trained on or in
            place of its own; None as a value: the model reads no prompt there.
          sampling: Parameters of sampling (default: `evaluate.sampling` of the run, or temperature
            1 and 64 tokens).
          engine: Sizes of the engine (default: from the run, or sizes for 2,048 tokens).
          dtype: `float32` or `bfloat16`; default: that of the run, or `float32`.
          seed: Seed of the run. None: that of the search (`best_of_n(..., seed=0)`).

        Returns:
          The policy.

        Raises:
          UserError: There is no policy, or it cannot be read.
        """
        folder = find_model(path, "policy", prompts)
        mesh, sizes = folder.mesh(), engine or folder.engine("policy")
        model = load_policy(folder.directory, dtype or folder.dtype(), mesh)
        model.config.check_length("engine.context", sizes.context, str(folder.directory))
        if sampling is None:
            sampling = Sampling() if folder.config is None else folder.config.evaluate.sampling
        running = Engine.of(model.params, model.config, sizes, mesh=mesh)
        policy = cls(running, model.tokenizer, folder.prompts, sampling, seed or 0)
        policy._prompts, policy._own_seed = folder.prompts, seed
        return policy

    def with_seed(self, seed: int) -> ModelPolicy:
        """Returns a policy of the same model with the seed of a run.

        Args:
          seed: Ignored if the policy was loaded with a seed of its own.

        Returns:
          A policy that shares the engine and has no open requests.
        """
        own = seed if self._own_seed is None else self._own_seed
        policy = ModelPolicy(self.engine, self.tokenizer, self._prompts, self.sampling, own)
        policy._prompts, policy._own_seed = self._prompts, own
        return policy

    @property
    def prompts(self) -> Prompts:
        """The prompts of the environments, by task."""
        return self._prompts

    def sampled_with(self, sampling: Sampling) -> ModelPolicy:
        """Returns a policy of the same model that samples in another way.

        Args:
          sampling: Parameters of sampling.

        Returns:
          A policy that shares the engine and has no open requests.

        Raises:
          UserError: The replies may be longer than the engine's context.
        """
        policy = ModelPolicy(
            self.engine, self.tokenizer, self._prompts, sampling, self._own_seed or 0
        )
        policy._prompts, policy._own_seed = self._prompts, self._own_seed
        return policy
