"""A run's configuration: the configs of all floors, composed. YAML holds what differs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.registry import Registry
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.evaluation.config import EvaluateConfig
from agentrm_jax.model.heads import HEADS, PAPER_HEAD, ValueHead
from agentrm_jax.model.lora import LoraConfig
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.policy_kinds import POLICIES, PolicyKind, RunPolicy, check_without_model
from agentrm_jax.reward.implicit import REDUCTIONS, Reduction
from agentrm_jax.reward.judge import JudgeConfig
from agentrm_jax.runtime.budget import BudgetConfig
from agentrm_jax.runtime.processes import DistributedConfig
from agentrm_jax.runtime.sharding import MeshConfig
from agentrm_jax.runtime.trackers import TRACKERS
from agentrm_jax.search.explore import SearchConfig
from agentrm_jax.search.labels import LabelConfig
from agentrm_jax.train.fit import FitConfig
from agentrm_jax.train.implicit import ImplicitConfig
from agentrm_jax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """An environment of the run.

    Attributes:
      name: Registered name.
      wording: One of the environment's wordings, in which the agent reads and speaks it (`using`,
        `move_to`, `from_take` and `paraphrase` of alfworld: see `envs.perturbations`).
      train: Whether anything is learned here. With false the environment is held out as a whole.
      kinds: Levels or domains to train and test on; empty takes all that are not held out.
      held_out: Levels or domains that are tested only.
      max_steps: Ends episodes after this number of steps; 0 leaves the environment's own limit.
      prompt: Whether the agent reads the environment's instruction and example. A model that was
        trained from nothing on this environment alone needs neither.
      prompt_dir: A folder with prompts in place of ours, in the files of the paper's authors: see
        `envs.prompts`.
    """

    name: str
    wording: str = ""
    train: bool = True
    kinds: Sequence[str] = ()
    held_out: Sequence[str] = ()
    max_steps: int = 0
    prompt: bool = True
    prompt_dir: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, max_steps="[0, 1000000]")
        if both := set(self.kinds) & set(self.held_out):
            raise UserError(f"names {both.pop()}, which kinds names as well", field="held_out")
        if self.held_out and not self.train:
            raise UserError(
                f"must be empty because {self.name} is held out as a whole (train: false); name "
                "what is tested in kinds",
                field="held_out",
            )

    @property
    def registered(self) -> str:
        """The name under which the family is loaded: `NAME` or `NAME@WORDING`."""
        return f"{self.name}@{self.wording}" if self.wording else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Expert trajectories.

    Attributes:
      num_tasks: Train tasks that the expert is asked to solve.
      imported: Folders that `agentrm import` wrote. Their trajectories take the place of what the
        environments' own experts would do; those that failed are left out.
    """

    num_tasks: int = 2000
    imported: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_fields(self, num_tasks="[1, 1000000]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training stage: its loop, its optimiser, and adapters where not all is trained."""

    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftTrainConfig(TrainConfig):
    """Training of the policy.

    Attributes:
      vocab_chunks: Parts of the vocabulary whose logits are made one after another, to save memory.
    """

    vocab_chunks: int = 1

    def __post_init__(self) -> None:
        check_fields(self, vocab_chunks="[1, 4096]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainConfig(TrainConfig):
    """Training of the reward model.

    Attributes:
      packing: What a row holds: `trees` reads what the paths of a tree share once, `paths` reads it
        for each of them (`pallas` attention knows paths only). The loss is the same.
      head: The value head.
      head_bias: Whether the value head has a bias. transformers' heads have none: without it an
        exported reward model gives there the same score as here.
    """

    packing: Literal["paths", "trees"] = "trees"
    head: Annotated[ValueHead, HEADS] = PAPER_HEAD
    head_bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("packing", self.packing, ("paths", "trees"))
        if self.packing == "trees" and self.fit.attention == "pallas":
            raise UserError(
                "must be paths because fit.attention: pallas does not support trees",
                field="packing",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """Exploration.

    Attributes:
      num_tasks: Train tasks, other ones than the experts', that get a tree.
      search: The search.
      sampling: How turns are sampled.
    """

    num_tasks: int = 100
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_fields(self, num_tasks="[1, 1000000]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Whole trajectories on the tasks of `explore`, of which an implicit reward model learns.

    Attributes:
      num_samples: Trajectories of each task.
      sampling: How turns are sampled.
      concurrency: Trajectories that run at the same time. It decides speed, never results.
    """

    num_samples: int = 16
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    concurrency: int = 64

    def __post_init__(self) -> None:
        check_fields(self, num_samples="[1, 100000]", concurrency="[1, 100000]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitTrainConfig(TrainConfig):
    """Training of the implicit reward model.

    Attributes:
      objective: What is minimised.
      vocab_chunks: As of `sft`.
      reduction: From the rewards of a trajectory's steps to its score: `sum` is what is trained;
        `mean` or `min`.
    """

    objective: ImplicitConfig = dataclasses.field(default_factory=ImplicitConfig)
    vocab_chunks: int = 1
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        check_fields(self, vocab_chunks="[1, 4096]")
        check_choice("reduction", self.reduction, REDUCTIONS)
        if self.objective.loss == "dpo" and self.fit.attention == "pallas":
            raise UserError(
                "must be xla because pallas does not support objective.loss: dpo",
                field="fit.attention",
            )


REWARD_KINDS: Registry[Any] = Registry("agentrm_jax.reward_kinds", "kind of reward model")
"""The kinds of reward models, classes of `pipeline.reward_kinds.RewardKind`."""

MOST_WORKERS = 4096
"""Environment processes of a host; each is a Python of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run.

    Attributes:
      plugins: Python files or modules that register what the package does not have: test-time
        methods, selection rules, value heads, kinds of reward models, policies. They are imported
        before any other key is read.
      environments: Where the agent acts.
      seed: Every random number follows from it.
      workers: Environment processes; 0 steps environments in this process, where nothing can stop
        one that hangs.
      step_seconds: How long an environment process may take for one action.
      trackers: Destinations of training metrics as well as `metrics.jsonl`: `tensorboard` (event
        files in the run's folder), `wandb` (WANDB_PROJECT, WANDB_MODE and so on say where to).
        Each has an extra of its own.
      dtype: Of the models' parameters and activations; losses and heads are float32. Training keeps
        the parameters that it changes in float32 and rounds them again for every update.
      policy: An existing policy to start from: a Hugging Face directory, or a model directory of
        another run (`runs/NAME/sft/model`). Without one `sft` makes `model` from nothing.
      train_policy: Whether `sft` trains it; with false it is taken as it is.
      agent: The policy that acts: `model`, that of `policy` or `sft`, or one registered elsewhere.
        Training of reward models starts from `policy` whoever acts.
      rewards: The kinds of reward model that the run trains and compares: `explicit` (values of
        states from search trees), `implicit` (a policy trained on outcomes), `judge` (a language
        model that compares whole trajectories), or a kind that is registered elsewhere. Best-of-n
        is run with each, other methods with the first.
      reward_model: An existing explicit reward model to evaluate with
        (`runs/NAME/reward/explicit/model`); exploration, labels and reward training are then left
        out.
      reward_read_at: Where an explicit reward model is read after an action: `stop`, the token that
        ends the reply; `end`, the last token that the chat template writes after a last reply;
        `auto` takes `end` for a classifier that others trained and `stop` for our own.
      reward_init: An existing explicit reward model from which reward training starts, in place of
        the policy's trunk.
    """

    plugins: tuple[str, ...] = ()
    environments: Sequence[EnvironmentConfig] = ()
    seed: int = 0
    workers: int = 0
    step_seconds: float = 30.0
    trackers: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    policy: str | None = None
    train_policy: bool = True
    rewards: tuple[str, ...] = ("explicit",)
    reward_model: str | None = None
    reward_read_at: Literal["auto", "stop", "end"] = "auto"
    reward_init: str | None = None
    agent: Annotated[PolicyKind, POLICIES] = dataclasses.field(default_factory=RunPolicy)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    budget: BudgetConfig = dataclasses.field(default_factory=BudgetConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    experts: ExpertsConfig = dataclasses.field(default_factory=ExpertsConfig)
    sft: SftTrainConfig = dataclasses.field(default_factory=SftTrainConfig)
    explore: ExploreConfig = dataclasses.field(default_factory=ExploreConfig)
    label: LabelConfig = dataclasses.field(default_factory=LabelConfig)
    train_rm: RewardTrainConfig = dataclasses.field(default_factory=RewardTrainConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    train_implicit: ImplicitTrainConfig = dataclasses.field(default_factory=ImplicitTrainConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        check_fields(
            self, seed=f"[0, {2**32 - 1}]", workers=f"[0, {MOST_WORKERS}]", step_seconds="(0, 1e6]"
        )
        names = [environment.registered for environment in self.environments]
        if not names or len(set(names)) < len(names):
            raise UserError("must name at least one environment, each once", field="environments")
        for name in self.trackers:
            check_choice("trackers", name, TRACKERS)
        self._check_agent()
        if not self.train_policy and self.policy is None and self.agent.uses_model:
            raise UserError("must be true unless `policy` is given", field="train_policy")
        known = REWARD_KINDS.names()
        for kind in self.rewards:
            check_choice("rewards", kind, known)
        if not self.rewards or len(set(self.rewards)) < len(self.rewards):
            raise UserError("must name at least one kind, each once", field="rewards")
        first = REWARD_KINDS.load(self.rewards[0])
        if first.compares and "beam" in self.evaluate.methods:
            raise UserError(
                f"must begin with another kind than {self.rewards[0]}, which compares whole "
                "trajectories, or evaluate.methods must be without beam",
                field="rewards",
            )
        if not first.scores_actions and self.evaluate.beam.score_at == "action":
            raise UserError(
                f"must be observation because rewards begins with {self.rewards[0]}; only explicit "
                "scores come before the observation",
                field="evaluate.beam.score_at",
            )
        check_choice("reward_read_at", self.reward_read_at, ("auto", "stop", "end"))
        self._check_reply_lengths()
        if self.sft.lora.rank and self.policy is None:
            raise UserError("must be 0 unless `policy` is given", field="sft.lora.rank")

    def _check_agent(self) -> None:
        """Refuses keys that need the run's own model if another agent acts."""
        learns, beam = self.trains_reward or self.trains_implicit, self.evaluate.beam
        at_action = "beam" in self.evaluate.methods and beam.score_at == "action"
        needed = {
            "policy": learns and self.policy is None,
            "judge.policy": "judge" in self.rewards and self.judge.policy is None,
            "evaluate.beam.score_at": at_action,
        }
        check_without_model(self.agent, needed)

    def _check_reply_lengths(self) -> None:
        """Refuses replies that leave no room for a conversation, in the stages of this run."""
        acts = self.agent.uses_model
        explores, samples = acts and self.trains_reward, acts and self.trains_implicit
        used = {
            "explore.sampling": self.explore.sampling.max_tokens if explores else 0,
            "sample.sampling": self.sample.sampling.max_tokens if samples else 0,
            "evaluate.sampling": self.evaluate.sampling.max_tokens if acts else 0,
            "judge": self.judge.max_tokens if "judge" in self.rewards else 0,
        }
        for section, tokens in used.items():
            if tokens >= self.engine.context:
                raise UserError(
                    field=f"{section}.max_tokens",
                    value=tokens,
                    expected=f"below engine.context, {self.engine.context}",
                )

    def reads_closing(self, foreign: bool) -> bool:
        """Returns whether actions are read at the end of the template; see `reward_read_at`."""
        return self.reward_read_at == "end" or (self.reward_read_at == "auto" and foreign)

    @property
    def trains_policy(self) -> bool:
        """Whether `sft` trains a policy: one that acts, or from which a reward model starts."""
        used = self.agent.uses_model or self.trains_reward or self.trains_implicit
        return self.train_policy and used

    @property
    def trains_reward(self) -> bool:
        """Whether an explicit reward model is trained."""
        return "train-rm" in self._trained_by and self.reward_model is None

    @property
    def trains_implicit(self) -> bool:
        """Whether an implicit reward model is trained."""
        return "train-implicit" in self._trained_by

    @functools.cached_property
    def _trained_by(self) -> frozenset[str | None]:
        """The stages that train the reward models of `rewards`."""
        return frozenset(REWARD_KINDS.load(kind).trained_by for kind in self.rewards)
