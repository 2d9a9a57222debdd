"""Test-time methods: greedy, best-of-n, beam search, and those that others register.

A method is a frozen dataclass whose fields are its keys in a configuration file. It gives one
answer for each task. It runs the tasks it is given and nothing else: repeating it over processes,
storing its answers and leaving out stored ones is the caller's part.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.core.registry import Registry
from agentrm_jax.search.beam import BeamConfig, search_beams
from agentrm_jax.search.best_of_n import choose_best
from agentrm_jax.search.choose import BASELINES, best, majority_of_n
from agentrm_jax.search.rollouts import Rollout, rollouts

UNDECIDED = "the reward model did not decide"
"""The error of an answer for which a reward model gave scores that are not finite."""

Rule = Callable[[Sequence[Trajectory]], np.ndarray]
"""Weights [n] of the n trajectories of a task, summing to 1."""


class Method(Protocol):
    """A test-time method.

    A class may also have the class variables of `MethodTraits`; without them it has the defaults.
    """

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields one answer for each task, as it is found, in any order.

        Args:
          policy: Proposes turns.
          scorer: The reward model.
          envs: The environments of the tasks.
          tasks: The tasks.
          seed: The seed of the run, for random numbers of the method's own. An answer depends on
            its task and the seed, never on the other tasks: an interrupted run is resumed with the
            tasks that are left.

        Yields:
          A rollout for each task. Reports show its trajectory and its costs (`policy_tokens`,
          `env_steps`, `reward_tokens`): the method sums them over everything that it tried.
        """
        ...


@runtime_checkable
class SamplingMethod(Protocol):
    """A method that samples n trajectories of each task first and then chooses one of them.

    An evaluation runs `sample` once and stores the trajectories; every reward model and every
    baseline then chooses among the same ones. A `Method` that has these as well is run in this way.
    """

    n: int

    def sample(
        self, policy: Policy, envs: EnvironmentPool, episodes: Sequence[tuple[Task, int]]
    ) -> Iterator[Rollout]:
        """Yields a trajectory for each (task, sample number), as it ends."""
        ...

    def choose(self, trajectories: Sequence[Trajectory], scores: Sequence[float]) -> np.ndarray:
        """Returns the weights [n] of a task's trajectories, given finite scores; they sum to 1."""
        ...

    def baselines(self, action_key: Callable[[Task, str], str]) -> Mapping[str, Rule]:
        """Returns rules that choose without a reward model, by the name of their result rows."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MethodTraits:
    """Class variables of a method that an evaluation reads, with their defaults.

    Attributes:
      temperature: The temperature of the policy that the method is given; None keeps the one of
        `evaluate.sampling`.
      uses_reward_model: Whether the method uses its scorer. If not, it is run once, its `scorer` is
        None, and its result rows name no reward model.
      scores_states: Whether the method needs the score of a state by itself. It then cannot be run
        with a reward model that compares the trajectories of a task.
    """

    temperature: float | None = None
    uses_reward_model: bool = True
    scores_states: bool = False


def method_traits(method: Method) -> MethodTraits:
    """Returns the traits of a method."""
    names = [field.name for field in dataclasses.fields(MethodTraits)]
    return MethodTraits(**{name: getattr(method, name) for name in names if hasattr(method, name)})


def options_text(method: Any) -> str:
    """Returns the options of a method that differ from their defaults, such as `depth=3`."""
    return ", ".join(
        f"{field.name}={json.dumps(value, default=str)}"
        for field in dataclasses.fields(method)
        if (value := getattr(method, field.name)) != _default(field) and field.name != "concurrency"
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


METHODS: Registry[type[Method]] = Registry("agentrm_jax.methods", "test-time method")


def register_method(name: str) -> Callable[[Any], Any]:
    """Returns a class decorator that adds a test-time method to those that `evaluate` can run.

    Args:
      name: The name in `evaluate.methods`, in result rows and of the folder of its answers.

    Raises:
      UserError: The name is taken by an installed package or by a baseline.
    """
    if name in BASELINES:
        raise UserError(f"test-time method {name!r} is the name of a baseline; take another")
    return METHODS.register(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """One trajectory at temperature 0.

    Attributes:
      concurrency: Trajectories that run at the same time. It decides speed, never results.
    """

    temperature: ClassVar[float] = 0.0
    uses_reward_model: ClassVar[bool] = False

    concurrency: int = 64

    def __post_init__(self) -> None:
        check_fields(self, concurrency="[1, 100000]")

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields one trajectory for each task; see `Method.run`."""
        return rollouts(policy, envs, tasks, concurrency=self.concurrency)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN:
    """The trajectory with the best score of n.

    Attributes:
      n: Trajectories to choose from.
      concurrency: Trajectories that run at the same time. It decides speed, never results.
    """

    n: int = 5
    concurrency: int = 64

    def __post_init__(self) -> None:
        check_fields(self, n="[1, 100000]", concurrency="[1, 100000]")

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the chosen trajectory of each task; see `Method.run`."""
        groups: dict[str, list[Rollout]] = {}
        episodes = [(task, sample) for task in tasks for sample in range(self.n)]
        for rollout in self.sample(policy, envs, episodes):
            group = groups.setdefault(rollout.trajectory.task.task_id, [])
            group.append(rollout)
            if len(group) == self.n:
                group.sort(key=lambda r: r.sample)
                [result] = choose_best([group], scorer)
                yield result.rollout or dataclasses.replace(group[0], error=UNDECIDED)

    def sample(
        self, policy: Policy, envs: EnvironmentPool, episodes: Sequence[tuple[Task, int]]
    ) -> Iterator[Rollout]:
        """Yields a trajectory for each (task, sample number), as it ends."""
        return rollouts(policy, envs, episodes, concurrency=self.concurrency)

    def choose(self, trajectories: Sequence[Trajectory], scores: Sequence[float]) -> np.ndarray:
        """Returns all weight on the largest score of the trajectories that ended, [n]."""
        return best(trajectories, scores)

    def baselines(self, action_key: Callable[[Task, str], str]) -> Mapping[str, Rule]:
        """Returns the baselines of best-of-n.

        Args:
          action_key: `EnvironmentPool.action_key`, for the majority of actions.
        """
        majority = functools.partial(majority_of_n, action_key=action_key)
        return {**BASELINES, "majority_of_n": majority}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam(BeamConfig):
    """Step-level beam search (paper section 3.4)."""

    scores_states: ClassVar[bool] = True

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the best finished trajectory of each task; see `Method.run`.

        Raises:
          UserError: `score_at` is `action`, and the policy or the scorer has no engine for it.
        """
        in_step = None
        if self.score_at == "action":
            from agentrm_jax.agent.agent import Agent
            from agentrm_jax.agent.in_step import InStepAgent
            from agentrm_jax.reward.explicit import ExplicitScorer

            if not (isinstance(policy, Agent) and isinstance(scorer, ExplicitScorer)):
                raise UserError(
                    "must be observation unless the policy is a language model and the scorer an "
                    "explicit reward model",
                    field="score_at",
                )
            in_step = InStepAgent(policy, scorer.engine)
        return search_beams(policy, scorer, envs, tasks, self, in_step)
