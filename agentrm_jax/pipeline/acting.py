"""The policy that acts in a stage, with its engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from agentrm_jax.agent.agent import Agent
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.workspace import Workspace


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ActingPolicy:
    """A policy on the devices of this process. All its agents share one engine.

    Attributes:
      model: The policy. The engine has taken its parameters over.
      engine: The engine that decodes.
      workspace: The run.
    """

    model: Model
    engine: Engine
    workspace: Workspace

    def agent(self, sampling: Sampling, branches: Sequence[int] = ()) -> Agent:
        """Returns an agent.

        Args:
          sampling: How its turns are sampled.
          branches: The numbers of turns that it is asked for at the same time; see `Agent`.
        """
        prompt_of, seed = self.workspace.prompts, self.workspace.config.seed
        return Agent(self.engine, self.model.tokenizer, prompt_of, sampling, seed, branches)


def open_policy(workspace: Workspace) -> ActingPolicy:
    """Loads the policy of a run and gives it an engine of the sizes that the run sets."""
    model = workspace.models.acting_policy()
    engine = Engine.of(
        model.params, model.config, workspace.config.engine, mesh=workspace.engine_mesh
    )
    return ActingPolicy(model=model, engine=engine, workspace=workspace)
