"""Configurations of the training stages: loop, optimizer, adapters, loss."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, get_args

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.model.heads import HEADS, PAPER_HEAD, ValueHead
from agentrm_jax.model.lora import LoraConfig
from agentrm_jax.reward.implicit import REDUCTIONS, Reduction
from agentrm_jax.train.fit import FitConfig
from agentrm_jax.train.implicit import ImplicitConfig
from agentrm_jax.train.optimizer import OptimizerConfig
from agentrm_jax.train.ranking import RankingConfig

Pairs = Literal["trajectories", "siblings", "exchanged", "siblings_and_exchanged"]
PAIRS: tuple[Pairs, ...] = get_args(Pairs)


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
      observation_loss: Weight of the cross-entropy of each token that the policy did not write,
        openings and observations, an auxiliary language-model loss. A small policy that is trained
        from nothing learns sooner with it to name the things that it has read.
    """

    vocab_chunks: int = 1
    observation_loss: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, vocab_chunks="[1, 4096]", observation_loss="[0, 1e6]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainConfig(TrainConfig):
    """Training of the reward model.

    Attributes:
      packing: What a row holds: `trees` reads what the paths of a tree share once, `paths` reads it
        for each of them. The loss is the same.
      head: The value head.
      head_bias: Whether the value head has a bias. transformers' heads have none: without it an
        exported reward model gives there the same score as here.
      ranking: The ranking loss between siblings that is added to the loss of the head.
      action_weight: Factor of the weights of labels after an action, before the environment has
        answered.
      observation_weight: Factor of the weights of labels after an observation.
      observation_loss: Weight of the cross-entropy of each token of the observations, an auxiliary
        language-model loss. It teaches the model what an action brings about at the place at which
        the action is scored.
      manipulated: Probability that a path of a tree is trained on in a manipulated form as well,
        whose last state has value 0: invalid actions, answers of another task, or steps in another
        order.
    """

    packing: Literal["paths", "trees"] = "trees"
    head: Annotated[ValueHead, HEADS] = PAPER_HEAD
    head_bias: bool = True
    ranking: RankingConfig = dataclasses.field(default_factory=RankingConfig)
    action_weight: float = 1.0
    observation_weight: float = 1.0
    observation_loss: float = 0.0
    manipulated: float = 0.0

    def __post_init__(self) -> None:
        ends = dict.fromkeys(("action_weight", "observation_weight"), "[0, 1e6]")
        check_fields(self, **ends, observation_loss="[0, 1e6]", manipulated="[0, 1]")
        if self.manipulated and self.observation_loss:  # answers of other tasks would be learned
            raise UserError(field="manipulated", expected="0 with an observation_loss")
        if not self.action_weight + self.observation_weight:
            raise UserError("must be above 0 if observation_weight is 0", field="action_weight")
        check_choice("packing", self.packing, ("paths", "trees"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitTrainConfig(TrainConfig):
    """Training of the implicit reward model.

    Attributes:
      objective: What is minimised.
      pairs: The pairs of `objective.loss: dpo`: `trajectories` are whole samples of a task;
        `siblings` are two actions in one state of a search tree, by their values, not yet answered;
        `exchanged` are an expert's action and the same one with a word exchanged, so that no
        search is needed; `siblings_and_exchanged` are both.
      vocab_chunks: As of `sft`.
      reduction: From the rewards of a trajectory's steps to its score: `sum` is what is trained;
        `mean`, `min`, `max` or `last`.
    """

    objective: ImplicitConfig = dataclasses.field(default_factory=ImplicitConfig)
    pairs: Pairs = "trajectories"
    vocab_chunks: int = 1
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        check_fields(self, vocab_chunks="[1, 4096]")
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_choice("pairs", self.pairs, PAIRS)
        if self.pairs != "trajectories" and self.objective.loss != "dpo":
            raise UserError("needs objective.loss: dpo, the loss over pairs", field="pairs")
