"""The policy that acts in a stage, with the engine of the run's own model if that acts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

from agentrm_jax.agent.agent import Agent
from agentrm_jax.agent.function import as_policy
from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Policy, Scorer
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.policy_kinds import PolicyOptions, RunPolicy, kind_name
from agentrm_jax.pipeline.workspace import Workspace


class AgentName(TypedDict, total=False):
    """A part of the summaries of stages.

    Attributes:
      agent: The kind of the policy that acts; absent if the run's own model acts.
    """

    agent: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunningModel:
    """The run's own model on the devices of this process.

    Attributes:
      model: The model. The engine has taken its parameters over.
      engine: The engine that decodes.
    """

    model: Model
    engine: Engine


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ActingPolicy:
    """The policy that acts in a stage. All agents of the run's own model share one engine.

    Attributes:
      workspace: The run.
      running: The run's own model, None if another agent acts.
      scorers: The reward models that were opened in this process, by name.
      servers: The served policies that were opened in this process.
    """

    workspace: Workspace
    running: RunningModel | None
    scorers: dict[str, Scorer] = dataclasses.field(default_factory=dict, repr=False)
    servers: list[ServerPolicy] = dataclasses.field(default_factory=list, repr=False)

    def scorer(self, name: str) -> Scorer:
        """Returns the reward model of a name in `rewards`; opens it the first time.

        Raises:
          UserError: It cannot be read.
        """
        if name not in self.scorers:
            self.scorers[name] = self.workspace.config.reward(name).open(self)
        return self.scorers[name]

    @property
    def model(self) -> Model:
        """The run's own model, without parameters.

        Raises:
          UserError: Another agent acts.
        """
        return self._own().model

    @property
    def engine(self) -> Engine:
        """The engine of the run's own model.

        Raises:
          UserError: Another agent acts.
        """
        return self._own().engine

    def agent(
        self,
        sampling: Sampling,
        branches: Sequence[int] = (),
        *,
        concurrency: int,
        seed: int | None = None,
    ) -> Policy:
        """Opens the policy of the section `agent`.

        Args:
          sampling: How its turns are sampled.
          branches: The numbers of turns that it is asked for at the same time; see `Agent`.
          concurrency: Trees or tasks that the caller works on at the same time.
          seed: Seed of its random numbers; that of the run by default.
        """
        config, prompts = self.workspace.config, self.workspace.prompts
        used = config.seed if seed is None else seed

        def run_policy() -> Policy:
            own = self._own()
            agent = Agent(own.engine, own.model.tokenizer, prompts, sampling, used, branches)
            agent.warm_up()
            return agent

        options = PolicyOptions(
            seed=used,
            sampling=sampling,
            prompt_of=prompts,
            branches=tuple(branches),
            concurrency=concurrency,
            run_policy=run_policy,
            directory=self.workspace.directory,
        )
        policy = as_policy(config.agent.open(options), used)
        if isinstance(policy, ServerPolicy):
            self.servers.append(policy)
        return policy

    @property
    def tokens_decoded(self) -> int:
        """Tokens that the policy has decoded for this process: its own model, or a server."""
        served = sum(policy.usage.decoded for policy in self.servers)
        return served if self.running is None else self.running.engine.usage.decoded

    @property
    def tokens_read(self) -> int:
        """Tokens that the policy has read for this process: its own model, or a server."""
        served = sum(policy.usage.read for policy in self.servers)
        return served if self.running is None else self.running.engine.usage.read

    def counts(self) -> dict[str, float]:
        """Returns what this process has counted so far; see `runtime.activity.ActivityRecord`."""
        pool = self.workspace.pool
        counts = {"env_steps": pool.steps, "environment_seconds": pool.seconds}
        if self.running is not None:
            usage = self.running.engine.usage
            counts |= {
                "tokens_decoded": usage.decoded,
                "tokens_read": usage.read,
                "policy_seconds": usage.seconds,
            }
        elif self.servers:
            counts |= {"tokens_decoded": self.tokens_decoded, "tokens_read": self.tokens_read}
        return counts

    @property
    def name(self) -> AgentName:
        """The kind of the policy, as the summary of a stage shows it."""
        agent = self.workspace.config.agent
        return {} if isinstance(agent, RunPolicy) else {"agent": kind_name(agent)}

    def _own(self) -> RunningModel:
        if self.running is None:
            raise UserError(
                "must be model because the engine of the run's own model is needed "
                f"(got {kind_name(self.workspace.config.agent)})",
                field="agent.kind",
            )
        return self.running


def open_policy(workspace: Workspace) -> ActingPolicy:
    """Returns the policy that acts; loads the run's own model if its kind uses that.

    The engine has the sizes that the run sets.
    """
    running = None
    if workspace.config.agent.uses_model:
        model, sizes = workspace.models.acting_policy(), workspace.config.engine
        engine = Engine.of(model.params, model.config, sizes, mesh=workspace.engine_mesh)
        running = RunningModel(model=model, engine=engine)
    return ActingPolicy(workspace=workspace, running=running)
