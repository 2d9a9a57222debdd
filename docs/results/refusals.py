"""A control without a model: fewest refused actions so far, then the policy's likelihood.

    agentrm evaluate CONFIG --output NEW --policy=RUN/sft/model --train_policy=false \\
        --plugins=[docs/results/refusals.py] --rewards=[refusals]

A reward model that is no better than this has learned to read refusals.
"""

import dataclasses

from agentrm_jax.pipeline.reward_kinds import RewardKind, register_reward_kind
from agentrm_jax.reward.likelihood import LikelihoodScorer


class RefusalScorer:
    """Scores states by the number of refused actions, equal ones by likelihood."""

    def score(self, groups):
        likelihoods = LikelihoodScorer().score(groups)
        return [
            [own - 1000.0 * refused(state) for own, state in zip(scores, group, strict=True)]
            for scores, group in zip(likelihoods, groups, strict=True)
        ]

    def cost(self, group):
        return 0


def refused(state):
    """The number of actions that the environment has refused; an unanswered one does not count."""
    return sum(not step.transition.valid for step in state.steps)


@register_reward_kind("refusals")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusals(RewardKind):
    def open(self, policy):
        return RefusalScorer()
