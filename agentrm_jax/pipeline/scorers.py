"""The reward models that test-time methods of a run ask."""

from __future__ import annotations

from agentrm_jax.core.protocols import Scorer
from agentrm_jax.evaluation.config import MethodRun
from agentrm_jax.evaluation.episodes import RANDOM
from agentrm_jax.pipeline.acting import ActingPolicy
from agentrm_jax.reward.random import RandomScorer


class Scorers:
    """The reward models of a run. Each is opened when the first method needs it.

    Args:
      policy: The policy that acts.
    """

    def __init__(self, policy: ActingPolicy) -> None:
        self._policy = policy

    def of(self, run: MethodRun) -> dict[str, Scorer]:
        """Returns the reward models of a method, by name."""
        return {name: self._scorer(name, run) for name in run.reward_models}

    def _scorer(self, name: str, run: MethodRun) -> Scorer:
        if name == RANDOM:
            return RandomScorer(run.seed(self._policy.workspace.config.seed))
        return self._policy.scorer(name)

    @property
    def tokens_read(self) -> int:
        """Tokens that the reward models have read in this process; members count, not ensembles."""
        opened, config = self._policy.scorers, self._policy.workspace.config
        return sum(
            getattr(scorer, "tokens_read", 0)
            for name, scorer in opened.items()
            if not config.reward(name).members
        )
