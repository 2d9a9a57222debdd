"""Kinds of reward models: how a run opens the scorer of each, and which stage trains it."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.data.chat import opening_tokens
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.model import llama
from agentrm_jax.pipeline.acting import ActingPolicy
from agentrm_jax.pipeline.config import REWARD_KINDS
from agentrm_jax.pipeline.models import load_policy
from agentrm_jax.pipeline.reward_model import explicit_scorer
from agentrm_jax.reward.implicit import ImplicitScorer, ImplicitSettings
from agentrm_jax.reward.judge import JudgeScorer
from agentrm_jax.reward.log_prob_judge import LogProbJudge


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardKind(abc.ABC):
    """Base class of the kinds of reward models.

    Attributes:
      trained_by: The stage of a run that trains it, None if no stage does.
      compares: Whether its scores of a trajectory depend on the other trajectories of the task. It
        then cannot score states in beam search.
      scores_actions: Whether it can score a reply inside of the decoding step, before the
        environment answers.
    """

    trained_by: ClassVar[str | None] = None
    compares: ClassVar[bool] = False
    scores_actions: ClassVar[bool] = False

    @abc.abstractmethod
    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns the scorer of a run.

        Args:
          policy: The policy that acts; `policy.workspace` is the run.

        Raises:
          UserError: There is no such reward model, or it cannot be read.
        """


def register_reward_kind(name: str) -> Callable[[Any], Any]:
    """Returns a class decorator that adds a kind of reward model to the list that `rewards` names.

    Args:
      name: The name in `rewards` and in result rows.

    Raises:
      UserError: An installed package provides the name.
    """
    return REWARD_KINDS.register(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explicit(RewardKind):
    """Values of states, regressed from search trees."""

    trained_by: ClassVar[str | None] = "train-rm"
    scores_actions: ClassVar[bool] = True

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer with an engine of the sizes that the run sets."""
        workspace = policy.workspace
        return explicit_scorer(workspace.models.reward(), workspace)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(RewardKind):
    """The log-ratio of a policy trained on outcomes to the policy before."""

    trained_by: ClassVar[str | None] = "train-implicit"

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer that holds both policies."""
        workspace = policy.workspace
        model, config = workspace.models.implicit(), workspace.config
        return ImplicitScorer(
            model.params,
            workspace.models.acting_policy().params,  # the engine has taken the others over
            model.config,
            model.tokenizer,
            workspace.prompts,
            ImplicitSettings(
                beta=config.train_implicit.objective.beta,
                limit=config.engine.context,
                reduction=config.train_implicit.reduction,
                rows=config.engine.extend_rows,
                mesh=workspace.engine_mesh,
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge(RewardKind):
    """A language model that compares whole trajectories of a task."""

    compares: ClassVar[bool] = True

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer; without `judge.policy` it shares the parameters of the run's own model.

        A judge that writes its answers shares the engine as well.
        """
        workspace = policy.workspace
        config, mesh = workspace.config, workspace.engine_mesh
        if config.judge.form == "log_probs":
            return self._log_prob_judge(policy)
        if config.judge.policy is None:
            model, engine = policy.model, policy.engine
        else:
            model = load_policy(pathlib.Path(config.judge.policy), config.dtype, mesh)
            engine = Engine.of(model.params, model.config, config.engine, mesh=mesh)
        tokenizer = model.tokenizer
        sampling = Sampling(temperature=0.0, max_tokens=config.judge.max_tokens)
        agent = Agent(engine, tokenizer, lambda task: None, sampling, config.seed)
        return JudgeScorer(
            agent,
            lambda text: len(tokenizer.encode(text)),
            limit=agent.renderer.limit - len(opening_tokens(tokenizer, None, "")),
            most=config.judge.most,
        )

    def _log_prob_judge(self, policy: ActingPolicy) -> LogProbJudge:
        workspace = policy.workspace
        config, mesh = workspace.config, workspace.engine_mesh
        if config.judge.policy is None:
            model, params = policy.model, policy.engine.programs.model.params
        else:
            model = load_policy(pathlib.Path(config.judge.policy), config.dtype, mesh)
            params = llama.unstacked(model.params, consume=True)
        return LogProbJudge(
            params, model.config, model.tokenizer, config.engine, config.judge, mesh
        )
