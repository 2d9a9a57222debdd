"""A run's configuration: the configs of all floors, composed. YAML holds what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.processes import DistributedConfig
from agentrm_jax.core.sharding import MeshConfig
from agentrm_jax.core.trackers import TRACKERS
from agentrm_jax.engine.engine import EngineConfig
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.evaluate.harness import EvaluateConfig
from agentrm_jax.model.lora import LoraConfig
from agentrm_jax.model.value import HeadConfig
from agentrm_jax.reward.implicit import REDUCTIONS, Reduction
from agentrm_jax.reward.judge import JudgeConfig
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
      max_steps: Ends episodes after so many steps; 0 leaves the environment's own limit.
      prompt: Whether the agent is told the environment's instruction and example. A model that
        was trained from nothing on this environment alone needs neither.
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
        if self.max_steps < 0:
            raise UserError(f"environments: max_steps must not be negative, not {self.max_steps}")
        if both := set(self.kinds) & set(self.held_out):
            raise UserError(f"environments: {self.name} trains on {both.pop()} and holds it out")
        if self.held_out and not self.train:
            raise UserError(
                f"environments: {self.name} is held out as a whole (train: false); name what is "
                "tested in kinds, and nothing in held_out"
            )

    @property
    def registered(self) -> str:
        """The name under which the family is loaded: `NAME` or `NAME@WORDING`."""
        return f"{self.name}@{self.wording}" if self.wording else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model that `sft` makes from nothing (used where `policy` is not given)."""

    vocab_size: int = 1024
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 64
    d_ff: int = 384
    rope_theta: float = 10_000.0


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
        if self.num_tasks < 1:
            raise UserError(f"experts.num_tasks: must be at least 1, not {self.num_tasks}")


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
        if self.vocab_chunks < 1:
            raise UserError(f"sft.vocab_chunks: must be at least 1, not {self.vocab_chunks}")


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
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    head_bias: bool = True

    def __post_init__(self) -> None:
        if self.packing not in ("paths", "trees"):
            raise UserError(f"train_rm.packing: must be paths or trees, not {self.packing!r}")
        if self.packing == "trees" and self.fit.attention == "pallas":
            raise UserError("train_rm.packing: attention 'pallas' knows no trees: take paths")


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
        if self.num_tasks < 1:
            raise UserError(f"explore.num_tasks: must be at least 1, not {self.num_tasks}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Whole trajectories on the tasks of `explore`, of which an implicit reward model learns.

    Attributes:
      num_samples: Trajectories of each task.
      sampling: How turns are sampled.
      slots: Trajectories that run at the same time. It decides speed, never results.
    """

    num_samples: int = 16
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    slots: int = 64

    def __post_init__(self) -> None:
        for name in ("num_samples", "slots"):
            if getattr(self, name) < 1:
                raise UserError(f"sample.{name}: must be at least 1, not {getattr(self, name)}")


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
        if self.vocab_chunks < 1:
            raise UserError(
                f"train_implicit.vocab_chunks: must be at least 1, not {self.vocab_chunks}"
            )
        if self.reduction not in REDUCTIONS:
            raise UserError(
                f"train_implicit.reduction: {self.reduction!r} is none of {', '.join(REDUCTIONS)}"
            )
        if self.objective.loss == "dpo" and self.fit.attention == "pallas":
            raise UserError("train_implicit.fit.attention: 'pallas' knows no pairs: take xla")


REWARDS = ("explicit", "implicit", "judge")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run.

    Attributes:
      environments: Where the agent acts.
      seed: Every random number follows from it.
      workers: Environment processes; 0 steps environments in this process, where nothing can stop
        one that hangs.
      step_seconds: How long an environment process may take for one action.
      trackers: Where the metrics of training go besides `metrics.jsonl`: `tensorboard` (event
        files in the run's folder), `wandb` (WANDB_PROJECT, WANDB_MODE and so on say where to).
        Each has an extra of its own.
      dtype: Of the models' parameters and activations; losses and heads are float32. Training keeps
        the parameters that it changes in float32 and rounds them anew for every update.
      policy: An existing policy to start from: a Hugging Face directory, or a model directory of
        another run (`runs/NAME/sft/model`). Without one `sft` makes `model` from nothing.
      train_policy: Whether `sft` trains it; with false it is taken as it is.
      rewards: The kinds of reward model that the run trains and compares: `explicit` (values of
        states from search trees), `implicit` (a policy trained on outcomes), `judge` (a language
        model that compares whole trajectories). Best-of-n is run with each, beam search with the
        first.
      reward_model: An existing explicit reward model to evaluate with
        (`runs/NAME/reward/explicit/model`); exploration, labels and reward training are then left
        out.
      reward_read_at: Where an explicit reward model is read after an action: `stop`, the token that
        ends the reply; `end`, the last token that the chat template writes after a last reply;
        `auto` takes `end` for a classifier that others trained and `stop` for our own.
      reward_init: An existing explicit reward model from which reward training starts, in place of
        the policy's trunk.
    """

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
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
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
        if not self.environments:
            raise UserError("environments: name at least one")
        names = [environment.registered for environment in self.environments]
        if len(set(names)) < len(names):
            raise UserError("environments: each may be named once")
        for name in self.trackers:
            if name not in TRACKERS:
                raise UserError(f"trackers: {name!r} is none of {', '.join(TRACKERS)}")
        if not self.train_policy and self.policy is None:
            raise UserError("train_policy: false needs `policy`, there is nothing to take as it is")
        for kind in self.rewards:
            if kind not in REWARDS:
                raise UserError(f"rewards: {kind!r} is none of {', '.join(REWARDS)}")
        if not self.rewards or len(set(self.rewards)) < len(self.rewards):
            raise UserError("rewards: name at least one, each once")
        if self.rewards[0] == "judge" and "beam" in self.evaluate.methods:
            raise UserError(
                "rewards: a judge compares whole trajectories; name another kind first for beam "
                "search, or leave beam out of evaluate.methods"
            )
        if self.rewards[0] != "explicit" and self.evaluate.beam.score_at == "action":
            raise UserError("evaluate.beam.score_at: only explicit scores come before the answer")
        if self.reward_read_at not in ("auto", "stop", "end"):
            raise UserError(
                f"reward_read_at: must be auto, stop or end (got {self.reward_read_at!r})"
            )
        if self.sft.lora.rank and self.policy is None:
            raise UserError("sft.lora.rank: needs `policy`, random matrices are worth no adapters")

    def reads_closing(self, foreign: bool) -> bool:
        """Returns whether actions are read at the end of the template; see `reward_read_at`."""
        return self.reward_read_at == "end" or (self.reward_read_at == "auto" and foreign)

    @property
    def trains_reward(self) -> bool:
        """Whether an explicit reward model is trained."""
        return "explicit" in self.rewards and self.reward_model is None

    @property
    def trains_implicit(self) -> bool:
        return "implicit" in self.rewards
