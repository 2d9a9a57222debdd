"""Kinds of policies: which agent acts in the stages of a run, as its section `agent` says.

A kind is a frozen dataclass whose fields are its keys in a configuration file.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from agentrm_jax.agent.function import PolicyFunction
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Policy
from agentrm_jax.core.records import Prompt, Task
from agentrm_jax.core.registry import Registry
from agentrm_jax.engine.programs.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PolicyOptions:
    """The facts that a stage gives to the policy that acts in it.

    Attributes:
      seed: Seed of the run.
      sampling: Parameters of sampling; temperature 0 asks for the greedy agent.
      prompt_of: Returns the prompt of a task, or None if the agent reads none.
      branches: The numbers of turns that the stage asks for at the same time; empty if it does not
        say.
      concurrency: Trees or tasks that the stage works on at the same time.
      run_policy: Opens the policy of the run's own model with these options.
      directory: The folder of the run; None outside of a run.
    """

    seed: int
    sampling: Sampling
    prompt_of: Callable[[Task], Prompt | None]
    branches: tuple[int, ...]
    concurrency: int
    run_policy: Callable[[], Policy]
    directory: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyKind(abc.ABC):
    """Base class of the kinds of policies.

    Attributes:
      uses_model: Whether it acts with the run's own model, the one that `policy` names or `sft`
        trains. Without it the run trains a policy only if a reward model starts from it.
      explores_without_trunk: Whether a run may begin without the model in `policy` from which its
        reward model starts: it is asked for when the reward model is trained.
      speed_keys: Names of fields that decide speed and no results.
    """

    uses_model: ClassVar[bool] = False
    explores_without_trunk: ClassVar[bool] = False
    speed_keys: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def open(self, options: PolicyOptions) -> Policy | PolicyFunction:
        """Opens the policy for a stage, or for a test-time method of an evaluation.

        Args:
          options: Seed, sampling, prompts and concurrency of the stage.

        Returns:
          A policy, or a function `(state, n, seed) -> n texts`. A `FunctionPolicy` without a seed
          gets that of the run.

        Raises:
          UserError: The policy cannot be opened.
        """


POLICIES: Registry[type[PolicyKind]] = Registry("agentrm_jax.policies", "policy")


def register_policy(name: str) -> Callable[[Any], Any]:
    """Returns a class decorator that adds a kind of policies to the list that `agent.kind` names.

    The class derives from `PolicyKind` and is a frozen, keyword-only dataclass; its fields are keys
    of the section `agent`.

    Args:
      name: Name of the kind, the value of `agent.kind`.

    Returns:
      The decorator; it returns the class unchanged.

    Raises:
      UserError: An installed package provides a kind of this name.
    """
    return POLICIES.register(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPolicy(PolicyKind):
    """The model of the run, which `policy` names or `sft` trains."""

    uses_model: ClassVar[bool] = True

    def open(self, options: PolicyOptions) -> Policy:
        """Returns an agent with the engine of the run."""
        return options.run_policy()


def kind_name(agent: PolicyKind) -> str:
    """Returns the name of a kind; that of its class if it is not registered."""
    return POLICIES.name_of(type(agent)) or type(agent).__name__


_NEEDS_MODEL = {
    "policy": (
        "must name the model directory from which the reward model starts",
        "; or name an existing reward model in reward_model; to explore alone, set "
        "explores_without_trunk = True in the class",
    ),
    "judge.policy": ("must name the model directory of the judge", ""),
    "evaluate.beam.score_at": ("must be observation", ""),
}
"""By key: what it must be if the run's own model does not act, and another way out."""


def check_without_model(agent: PolicyKind, needed: Mapping[str, bool]) -> None:
    """Refuses a key that needs the run's own model as the agent if another agent acts.

    Args:
      agent: The section `agent`.
      needed: Whether the key needs the model, for `policy`, `judge.policy` and
        `evaluate.beam.score_at`.

    Raises:
      UserError: A key needs it; the message says what to write instead.
    """
    for key, needs in needed.items():
        if needs and not agent.uses_model:
            expected, otherwise = _NEEDS_MODEL[key]
            raise UserError(
                f"{expected} because agent.kind is {kind_name(agent)}, which does not act with "
                f"the run's own model{otherwise}",
                field=key,
            )
