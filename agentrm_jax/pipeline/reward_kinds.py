"""Kinds of reward models: how a run opens the scorer of each, and which stage trains it.

A kind is a frozen dataclass whose fields are its keys in `reward_options`.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.addresses import is_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.data.chat import opening_tokens
from agentrm_jax.data.tokenizer import load_vocabulary
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.compiled import own_parameters
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.model.eight_bits import in_eight_bits
from agentrm_jax.model.parameters import Params
from agentrm_jax.pipeline.acting import ActingPolicy
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.models import load_policy, load_policy_params, load_reward, stored_head
from agentrm_jax.pipeline.reward_model import explicit_scorer
from agentrm_jax.pipeline.reward_names import REWARD_KINDS, RewardTraits
from agentrm_jax.pipeline.run_models import RunModels
from agentrm_jax.pipeline.served_judge import served_judge
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.reward.controls import FewestInvalidScorer, LikelihoodScorer
from agentrm_jax.reward.implicit import REDUCTIONS, ImplicitScorer, ImplicitSettings, Reduction
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
      speed_keys: Names of fields that decide speed and no results.
    """

    speed_keys: ClassVar[tuple[str, ...]] = ()
    trained_by: ClassVar[str | None] = None
    compares: ClassVar[bool] = False
    scores_actions: ClassVar[bool] = False

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the reward models that it combines, as in `rewards`; none by default."""
        return ()

    @property
    def traits(self) -> RewardTraits:
        """The class variables, for the options that are set; those of its members come on top."""
        return RewardTraits(
            trained_by=frozenset(() if self.trained_by is None else (self.trained_by,)),
            compares=self.compares,
            scores_actions=self.scores_actions,
        )

    def check(self, config: RunConfig) -> None:
        """Refuses options that do not fit the run, when its configuration is read.

        Args:
          config: The configuration of the run.

        Raises:
          UserError: An option is refused; its `field` is the name of the option.
        """
        del config

    def check_models(self, models: RunModels) -> None:
        """Refuses options that name models that cannot be read, before anything runs.

        Args:
          models: The models of the run.

        Raises:
          UserError: A model is missing or does not fit; its `field` is the name of the option.
        """
        del models

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
    """Values of states, regressed from search trees.

    Attributes:
      model: Another explicit reward model than that of the run: a model folder of a run
        (`runs/NAME/reward/explicit/model`) or a Hugging Face directory.
      quantile: Reads a head of kind `quantile` at this quantile in place of the mean: 0.25 is a
        pessimistic value.
    """

    trained_by: ClassVar[str | None] = "train-rm"
    scores_actions: ClassVar[bool] = True

    model: str | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, quantile="(0, 1)")

    @property
    def traits(self) -> RewardTraits:
        traits = super().traits
        return traits if self.model is None else dataclasses.replace(traits, trained_by=frozenset())

    def check(self, config: RunConfig) -> None:
        if self.quantile is not None and self.model is None and config.reward_model is None:
            config.train_rm.head.at_quantile(self.quantile)

    def check_models(self, models: RunModels) -> None:
        if self.model is not None:
            models.check_model("model", self.model, "reward")
        given = self.model or models.config.reward_model
        if self.quantile is not None and given is not None:
            stored_head(pathlib.Path(given)).at_quantile(self.quantile)

    def directory(self, models: RunModels) -> pathlib.Path:
        """Returns the folder of the model."""
        return models.reward_directory if self.model is None else pathlib.Path(self.model)

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer with an engine of the sizes that the run sets."""
        workspace = policy.workspace
        model = load_reward(
            self.directory(workspace.models), workspace.config.dtype, workspace.engine_mesh
        )
        return explicit_scorer(model, workspace, self.quantile)


def explicit_directory(config: RunConfig, models: RunModels) -> pathlib.Path:
    """Returns the folder of the explicit reward model that comes first in `rewards`."""
    first = config.reward(config.rewards[0])
    return first.directory(models) if isinstance(first, Explicit) else models.reward_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(RewardKind):
    """The log-ratio of a policy trained on outcomes to the policy before.

    Attributes:
      reduction: In place of `train_implicit.reduction`.
    """

    trained_by: ClassVar[str | None] = "train-implicit"

    reduction: Reduction | None = None

    def __post_init__(self) -> None:
        if self.reduction is not None:
            check_choice("reduction", self.reduction, REDUCTIONS)

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer that holds both policies."""
        workspace = policy.workspace
        model, config = workspace.models.implicit(), workspace.config
        return ImplicitScorer(
            _in_engine_bits(config, model.params),
            # The engine has taken the other parameters over.
            _in_engine_bits(config, workspace.models.acting_policy().params),
            model.config,
            model.tokenizer,
            workspace.prompts,
            _implicit_settings(
                workspace,
                config.train_implicit.objective.beta,
                self.reduction or config.train_implicit.reduction,
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitPair(RewardKind):
    """The log-ratio of any two given policies with one vocabulary (progress advantage).

    A policy that reinforcement learning has trained, over the policy that it started from, scores
    trajectories without any further training (arXiv 2606.26080).

    Attributes:
      policy: The trained policy: a Hugging Face directory, or a model folder of a run. Its
        tokenizer and chat template render the trajectories.
      reference: The policy before that training, or another one with the same vocabulary.
      beta: The factor of the log-ratios.
      reduction: From the rewards of a trajectory's steps to its score: `sum`, `mean`, `min`, `max`
        or `last`.
    """

    policy: str
    reference: str
    beta: float = 0.05
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        check_fields(self, beta="(0, inf)")
        check_choice("reduction", self.reduction, REDUCTIONS)

    def check_models(self, models: RunModels) -> None:
        for field in ("policy", "reference"):
            models.check_model(field, getattr(self, field), "policy")
        policy, reference = (pathlib.Path(each) for each in (self.policy, self.reference))
        if load_vocabulary(policy) != load_vocabulary(reference):
            raise UserError(
                f"must have the vocabulary of policy, {self.policy}: the log-ratio compares the "
                f"same tokens (got {self.reference})",
                field="reference",
            )

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer that holds both policies."""
        workspace = policy.workspace
        dtype, mesh = workspace.config.dtype, workspace.engine_mesh
        model = load_policy(pathlib.Path(self.policy), dtype, mesh)
        params = _in_engine_bits(workspace.config, model.params)
        reference, shape = load_policy_params(pathlib.Path(self.reference), dtype, mesh)
        return ImplicitScorer(
            params,
            _in_engine_bits(workspace.config, reference),
            model.config,
            model.tokenizer,
            workspace.prompts,
            _implicit_settings(workspace, self.beta, self.reduction),
            shape,
        )


def _in_engine_bits(config: RunConfig, params: Params) -> Params:
    """Returns parameters in the bits that `engine.weights` asks for; the given ones are deleted."""
    return params if config.engine.weights is None else in_eight_bits(params, consume=True)


def _implicit_settings(workspace: Workspace, beta: float, reduction: Reduction) -> ImplicitSettings:
    sizes = workspace.config.engine
    return ImplicitSettings(
        beta=beta,
        limit=sizes.context,
        reduction=reduction,
        rows=sizes.extend_rows,
        mesh=workspace.engine_mesh,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(RewardKind):
    """The log-probability of all replies under the policy that acts: a baseline without a model."""

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer that reads the stored log-probabilities."""
        del policy
        return LikelihoodScorer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewestInvalid(RewardKind):
    """Fewest invalid actions, the likeliest among equals: a baseline without a model."""

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer that reads stored answers and log-probabilities."""
        del policy
        return FewestInvalidScorer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge(RewardKind):
    """A language model that compares whole trajectories of a task."""

    compares: ClassVar[bool] = True

    def open(self, policy: ActingPolicy) -> Scorer:
        """Returns a scorer; without `judge.policy` it shares the parameters of the run's own model.

        A judge that writes its answers shares the engine as well. A served judge has none.
        """
        workspace = policy.workspace
        config, mesh = workspace.config, workspace.engine_mesh
        if is_url(config.judge.policy):
            return served_judge(workspace)
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
            params = own_parameters(model.params, config.engine, consume=True)
        return LogProbJudge(
            params, model.config, model.tokenizer, config.engine, config.judge, mesh
        )
