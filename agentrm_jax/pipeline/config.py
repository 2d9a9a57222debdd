"""A run's configuration: the configs of all floors, composed. YAML holds what differs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from agentrm_jax.core.addresses import is_url
from agentrm_jax.core.errors import UserError, section
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.data.state_parts import PARTS, Part
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.perturbations import SEPARATOR, SILENT
from agentrm_jax.evaluation.calibration import CalibrateConfig
from agentrm_jax.evaluation.config import EvaluateConfig
from agentrm_jax.pipeline import reward_names
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.policy_kinds import POLICIES, PolicyKind, RunPolicy, check_without_model
from agentrm_jax.pipeline.reward_names import REWARD_KINDS, RewardTraits
from agentrm_jax.pipeline.train_config import ImplicitTrainConfig, RewardTrainConfig, SftTrainConfig
from agentrm_jax.reward.judge import JudgeConfig
from agentrm_jax.runtime.budget import BudgetConfig
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.processes import DistributedConfig
from agentrm_jax.runtime.sharding import MeshConfig
from agentrm_jax.runtime.trackers import TRACKERS
from agentrm_jax.search.explore import SearchConfig
from agentrm_jax.search.labels import LabelConfig
from agentrm_jax.search.methods import method_traits


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """An environment of the run.

    Attributes:
      name: Registered name; for environments from outside with a form, such as
        `agentgym@textcraft` or `gymnasium@LABEL`. A run that only learns from logged trajectories
        may name one that is not registered.
      options: What an environment from outside needs, such as the address of its server.
      instruction: Lines that the agent reads in place of the environment's own instruction and
        example.
      wording: One of the environment's wordings, in which the agent reads and speaks it: `using`,
        `move_to`, `from_take` and `paraphrase` of alfworld, `move_to`, `grab` and `rotate` of
        babyai, and those of your own environment.
      train: Whether anything is learned here. With false the environment is held out as a whole.
      kinds: Levels or domains to train and test on; empty takes all that are not held out.
      held_out: Levels or domains that are tested only.
      max_steps: Ends episodes after this number of steps; 0 leaves the environment's own limit.
      reveal: Whether the end of an episode may tell its outcome. With false the agent ends episodes
        itself, and no text says whether the goal is reached (babyai has this form).
      prompt: Whether the agent reads the environment's instruction and example. A model that was
        trained from nothing on this environment alone needs neither.
      prompt_dir: A folder with prompts in place of ours, in the files of the paper's authors: see
        `envs.prompts`.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    instruction: tuple[str, ...] = ()
    wording: str = ""
    train: bool = True
    kinds: Sequence[str] = ()
    held_out: Sequence[str] = ()
    max_steps: int = 0
    reveal: bool = True
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
        """The name under which the family is loaded: `NAME`, and after @ its forms."""
        forms = (() if self.reveal else (SILENT,)) + ((self.wording,) if self.wording else ())
        return SEPARATOR.join((self.name, *forms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Expert trajectories.

    Attributes:
      num_tasks: Train tasks that the expert is asked to solve.
      imported: Folders that `agentrm import` wrote. Their trajectories take the place of what the
        environments' own experts would do; those that failed are left out.
      mistakes: Probability of a mistake before each step, and after each mistake: an action of the
        expert at the wrong time. Refused ones stay in the trajectory; the policy reads them and is
        trained on the expert's steps alone.
    """

    num_tasks: int = 2000
    imported: Sequence[str] = ()
    mistakes: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, num_tasks="[1, 1000000]", mistakes="[0, 0.9]")
        if self.mistakes and self.imported:
            raise UserError(field="mistakes", expected="0 with imported trajectories")


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
      trajectories: Files and folders of logged trajectories with outcomes, whose states are
        labelled in place of those of search trees: conversations of ETO or AgentGym, ATIF files,
        folders of a run. Nothing is explored then. The option `--from FILE` sets this key.
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
        another run (`runs/NAME/sft/model`). Without one `sft` makes `model` from nothing. The
        address of a server in a file or on the command line, `http://HOST:PORT`, is short for
        `agent: {kind: server, url: http://HOST:PORT}` and `train_policy: false`.
      train_policy: Whether `sft` trains it; with false it is taken as it is.
      agent: The policy that acts: `model`, that of `policy` or `sft`; `server`, a served
        model; or one registered elsewhere. Training of reward models starts from `policy` whoever
        acts.
      rewards: The reward models that the run trains and compares: `explicit` (values of states from
        search trees), `implicit` (a policy trained on outcomes), `judge` (a language model that
        compares whole trajectories), a kind that is registered elsewhere, or a name of
        `reward_options`. Best-of-n is run with each, other methods with the first.
      reward_options: Reward models by a name of your own: their kind and its keys. Without `kind`
        the name is that of a kind.
      reward_model: An existing explicit reward model to evaluate with
        (`runs/NAME/reward/explicit/model`); exploration, labels and reward training are then left
        out.
      reward_read_at: Where an explicit reward model is read after an action: `stop`, the token that
        ends the reply; `end`, the last token that the chat template writes after a last reply;
        `auto` takes `end` for a classifier that others trained and `stop` for our own.
      reward_init: An existing explicit reward model from which reward training starts, in place of
        the policy's trunk.
      state_parts: The parts of each step that the explicit reward model reads, of `thought`,
        `action` and `observation` (paper section 4.4); the task and the first observation always.
    """

    plugins: tuple[str, ...] = ()
    environments: Sequence[EnvironmentConfig] = ()
    trajectories: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 0
    step_seconds: float = 30.0
    trackers: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    policy: str | None = None
    train_policy: bool = True
    rewards: tuple[str, ...] = ("explicit",)
    reward_options: Mapping[str, Annotated[Any, REWARD_KINDS]] = dataclasses.field(
        default_factory=dict
    )
    reward_model: str | None = None
    reward_read_at: Literal["auto", "stop", "end"] = "auto"
    reward_init: str | None = None
    state_parts: tuple[Part, ...] = PARTS
    agent: Annotated[PolicyKind, POLICIES] = dataclasses.field(default_factory=RunPolicy)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    leases: LeasesConfig = dataclasses.field(default_factory=LeasesConfig)
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
    calibrate: CalibrateConfig = dataclasses.field(default_factory=CalibrateConfig)
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
        reward_names.check_reward_options(self.reward_options)
        if not self.rewards or len(set(self.rewards)) < len(self.rewards):
            raise UserError("must name at least one kind, each once", field="rewards")
        self._check_agent()
        if self.leases.enabled and self.distributed.coordinator is not None:
            raise UserError(
                "must be false if distributed.coordinator is set: processes that joined share "
                "tasks by leases anyway, and end together",
                field="leases.enabled",
            )
        if not self.train_policy and self.policy is None and self.agent.uses_model:
            raise UserError("must be true unless `policy` is given", field="train_policy")
        self._check_rewards()
        check_choice("reward_read_at", self.reward_read_at, ("auto", "stop", "end"))
        self._check_state_parts()
        self._check_reply_lengths()
        if self.sft.lora.rank and self.policy is None:
            raise UserError("must be 0 unless `policy` is given", field="sft.lora.rank")

    def _check_rewards(self) -> None:
        """Refuses reward models that do not fit the rest of the run."""
        for name, kind in self.used_rewards:
            with section(f"reward_options.{name}"):
                kind.check(self)
        first = self.reward_traits(self.rewards[0])
        for name in self.evaluate.methods if first.compares else ():
            traits = method_traits(self.evaluate.method(name))
            if traits.uses_reward_model and traits.scores_states:
                raise UserError(
                    f"must begin with another kind than {self.rewards[0]}, which compares whole "
                    f"trajectories, or evaluate.methods must be without {name}",
                    field="rewards",
                )
        if not first.scores_actions and self.evaluate.beam.score_at == "action":
            raise UserError(
                f"must be observation because rewards begins with {self.rewards[0]}; only explicit "
                "scores come before the observation",
                field="evaluate.beam.score_at",
            )

    def _check_agent(self) -> None:
        """Refuses keys that need the run's own model if another agent acts."""
        learns, beam = self.trains_reward or self.trains_implicit, self.evaluate.beam
        at_action = "beam" in self.evaluate.methods and beam.score_at == "action"
        has_trunk = self.policy is not None or self.agent.explores_without_trunk
        if is_url(self.policy):
            raise UserError(
                "must be a model directory; a server is named in agent: {kind: server, url: ...}",
                field="policy",
            )
        needed = {
            "policy": learns and not has_trunk,
            "judge.policy": self.uses_kind("judge") and self.judge.policy is None,
            "evaluate.beam.score_at": at_action,
        }
        check_without_model(self.agent, needed)

    def _check_state_parts(self) -> None:
        """Refuses states without a part, and scores of whole states in a decoding step."""
        for part in self.state_parts:
            check_choice("state_parts", part, PARTS)
        if not self.state_parts or len(set(self.state_parts)) < len(self.state_parts):
            raise UserError("must name at least one part, each once", field="state_parts")
        at_action = "beam" in self.evaluate.methods and self.evaluate.beam.score_at == "action"
        if at_action and set(self.state_parts) < set(PARTS):
            raise UserError(
                "must be observation because state_parts leaves out a part of the states",
                field="evaluate.beam.score_at",
            )

    def _check_reply_lengths(self) -> None:
        """Refuses replies that leave no room for a conversation, in the stages of this run."""
        acts = self.agent.uses_model
        explores, samples = acts and self.explores, acts and self.samples
        writes_answers = self.uses_kind("judge") and self.judge.form == "choice"
        used = {
            "explore.sampling": self.explore.sampling.max_tokens if explores else 0,
            "sample.sampling": self.sample.sampling.max_tokens if samples else 0,
            "evaluate.sampling": self.evaluate.sampling.max_tokens if acts else 0,
            "judge": self.judge.max_tokens if writes_answers else 0,
        }
        for stage, tokens in used.items():
            if tokens >= self.engine.context:
                raise UserError(
                    field=f"{stage}.max_tokens",
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

    @property
    def labels_states(self) -> bool:
        """Whether a reward model is trained that learns from states with values."""
        return self.trains_reward or self._learns_from_siblings

    @property
    def explores(self) -> bool:
        """Whether these states are found by tree search."""
        return self.labels_states and not self.trajectories

    @property
    def samples(self) -> bool:
        """Whether a reward model is trained that learns from sampled trajectories."""
        return self.trains_implicit and self.train_implicit.pairs == "trajectories"

    @property
    def learns_from_experts(self) -> bool:
        """Whether a reward model is trained that learns from the experts' actions."""
        return self.trains_implicit and "exchanged" in self.train_implicit.pairs

    @property
    def _learns_from_siblings(self) -> bool:
        return self.trains_implicit and "siblings" in self.train_implicit.pairs

    def reward(self, name: str) -> Any:
        """Returns the reward model of a name in `rewards`, a `pipeline.reward_kinds.RewardKind`."""
        return reward_names.reward_kind(name, self.reward_options)

    def reward_traits(self, name: str) -> RewardTraits:
        """Returns the traits of the reward model of a name in `rewards`."""
        return reward_names.reward_traits(name, self.reward_options)

    @functools.cached_property
    def used_rewards(self) -> tuple[tuple[str, Any], ...]:
        """The reward models of `rewards` and of ensembles: (name, model), members first."""
        return tuple(reward_names.used_rewards(self.rewards, self.reward_options).items())

    def uses_kind(self, kind: str) -> bool:
        """Returns whether one of the reward models is of a kind."""
        return any(REWARD_KINDS.name_of(type(each)) == kind for _, each in self.used_rewards)

    @functools.cached_property
    def _trained_by(self) -> frozenset[str]:
        """The stages that train the reward models of `rewards`."""
        return frozenset().union(*(kind.traits.trained_by for _, kind in self.used_rewards))
